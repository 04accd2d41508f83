"""Our options as transformers' TrainingArguments."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_finetune import quick

from gpt2tg.errors import UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.training import arguments
from gpt2tg.training.arguments import training_arguments
from gpt2tg.training.finetune import finetune


def test_compiled_run_has_the_same_losses(
    text_file: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plainly = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: plainly(self, backend="aot_eager"))
    losses = {}
    for compile in ("off", "on"):
        options = quick(text_file, tmp_path / compile, compile=compile, dropout=0.0, max_steps=3)
        finetune(options, str(model_dir))
        log = json.loads((tmp_path / compile / "checkpoint-3" / "trainer_state.json").read_text())["log_history"]
        losses[compile] = [entry[name] for entry in log for name in ("loss", "eval_loss") if name in entry]
    assert len(losses["on"]) == 5
    assert losses["on"] == pytest.approx(losses["off"], abs=1e-5)


def test_only_long_runs_on_a_gpu_are_compiled(
    text_file: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = quick(text_file, tmp_path)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert arguments.is_compiled(auto, cuda, 10_000)
    assert not arguments.is_compiled(auto, cuda, 100)
    assert not arguments.is_compiled(auto, cpu, 10_000)
    assert not arguments.is_compiled(replace(auto, compile="off"), cuda, 10_000)
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    finetune(replace(auto, compile="on", max_steps=1), str(model_dir))
    assert len(compiled) == 1


def test_gpu_that_only_emulates_bf16_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    options = TrainingOptions(train_file="a.txt", output_dir=str(tmp_path), bf16=True)
    with pytest.raises(UserError, match="bf16 is not supported by Tesla T4: use --fp16"):
        training_arguments(options, torch.device("cuda"))
