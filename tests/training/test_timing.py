"""The estimated time of a training step."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config

from gpt2tg.options import TrainingOptions
from gpt2tg.training import timing
from gpt2tg.training.timing import StepTimes, measure_step_times


def test_frozen_layers_take_no_backward_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up times: 5 + 2 per layer forward, 7 + 3 per trained layer backward, 1 per trained layer to update."""

    def times(options: TrainingOptions, config: GPT2Config, layers: int, device: torch.device) -> StepTimes:
        trained = layers - options.freeze_layers
        assert trained >= 0
        return StepTimes(forward=5.0 + 2 * layers, backward=7.0 + 3 * trained, update=1.0 * trained)

    monkeypatch.setattr(timing, "_time_model", times)
    for frozen in (0, 1, 9, 12):
        found = measure_step_times(TrainingOptions(freeze_layers=frozen), GPT2Config(n_layer=12), torch.device("cpu"))
        assert (found.forward, found.backward, found.update) == (29, 7 + 3 * (12 - frozen), 12 - frozen)
