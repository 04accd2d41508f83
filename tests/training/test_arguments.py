"""Our options as transformers' TrainingArguments."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpt2tg.errors import UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.training import report
from gpt2tg.training.arguments import training_arguments
from gpt2tg.training.report import log_precision


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


def test_bf16_on_an_apple_gpu_needs_macos_14(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: (major, minor) <= (13, 3))
    options = TrainingOptions(train_file="a.txt", output_dir=str(tmp_path), bf16=True)
    with pytest.raises(UserError, match="bf16 needs macOS 14 or newer"):
        training_arguments(options, torch.device("mps"))


@pytest.mark.parametrize(
    ("settings", "capability", "advises"),
    [
        ({}, (8, 0), True),
        ({}, (9, 0), True),
        ({}, (7, 5), False),
        ({"bf16": True}, (8, 0), False),
        ({"fp16": True}, (8, 0), False),
        ({"trainer": ("tf32=1",)}, (8, 0), False),
    ],
    ids=str,
)
def test_run_in_fp32_on_a_new_gpu_advises_bf16(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    settings: dict[str, Any], capability: tuple[int, int], advises: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    arguments = SimpleNamespace(tf32="trainer" in settings or None)
    options = TrainingOptions(train_file="a.txt", **settings)
    log_precision(options, arguments, torch.device("cuda"))
    expected = "advice: NVIDIA A100 computes several times as fast with --bf16\n"
    assert capsys.readouterr().err == (expected if advises else "")
    monkeypatch.setattr(report, "emulates_bf16", lambda: False)
    log_precision(options, arguments, torch.device("cpu"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("bf16", [True, False])
def test_run_in_bf16_on_a_processor_without_it_advises_fp32(
    bf16: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "emulates_bf16", lambda: True)
    options = TrainingOptions(train_file="a.txt", bf16=bf16)
    log_precision(options, SimpleNamespace(tf32=None), torch.device("cpu"))
    assert ("several times faster without --bf16" in capsys.readouterr().err) is bf16
