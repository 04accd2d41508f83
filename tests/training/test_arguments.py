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
