"""The weights that a run trains, and the model that its samples are written with."""

from __future__ import annotations

import pytest
import torch
from conftest import random_model

from gpt2tg.engine.contexts import new_context
from gpt2tg.options import TrainingOptions
from gpt2tg.training.model.build import engine_model
from gpt2tg.training.model.lora import choose_weights

IDS = [[5, 80, 7, 33, 12, 250, 3]]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("use_dora", [False, True])
def test_samples_are_of_the_model_with_its_adapter(use_dora: bool) -> None:
    options = TrainingOptions(
        train_file="a.txt", lora=True, lora_targets=("all-linear",), use_dora=use_dora, use_rslora=True
    )
    model = choose_weights(random_model(), options, "base").eval()
    torch.manual_seed(1)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.3 * torch.rand_like(weight)
    with torch.no_grad():
        expected = model(torch.tensor(IDS)).logits[0, -1]
    torch.testing.assert_close(new_context(engine_model(model, 0), 64).start(IDS)[0], expected, atol=1e-4, rtol=0)
