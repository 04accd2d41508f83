"""Our options as transformers' TrainingArguments."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gpt2tg.errors import UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.training.arguments import training_arguments


def test_gpu_that_only_emulates_bf16_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    options = TrainingOptions(train_file="a.txt", output_dir=str(tmp_path), bf16=True)
    with pytest.raises(UserError, match="bf16 is not supported by Tesla T4: use --fp16"):
        training_arguments(options, torch.device("cuda"))


def test_batches_are_sent_to_a_gpu_without_waiting(tmp_path: Path) -> None:
    """From pinned memory, as a copy that does not wait needs it."""
    options = TrainingOptions(train_file="a.txt", output_dir=str(tmp_path))
    for kind, expected in (("cuda", True), ("cpu", False)):
        found = training_arguments(options, torch.device(kind))
        assert (found.accelerator_config.non_blocking, found.dataloader_pin_memory) == (expected, expected)
