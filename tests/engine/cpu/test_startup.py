"""When a model is preloaded while torch is imported, and in which precision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gpt2tg.checkpoint.checkpoint import Checkpoint, read_checkpoint
from gpt2tg.checkpoint.find import BUNDLED_DIRECTORY
from gpt2tg.engine.cpu import startup
from gpt2tg.engine.cpu.preload import Preload
from gpt2tg.errors import UserError

Started = list[tuple[Path, str]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """Directory and precision of each preload that is started, on a machine without a GPU."""
    models: Started = []

    def start(checkpoint: Checkpoint, precision: str) -> None:
        models.append((checkpoint.directory, precision))

    monkeypatch.setattr(Preload, "start", start)
    monkeypatch.setattr(startup, "ACCELERATORS", ())
    return models


@pytest.mark.parametrize(("asked", "held"), [("auto", "fp32"), ("fp32", "fp32"), ("fp16", "fp16"), ("int8", "int8")])
def test_model_is_preloaded_in_its_precision(started: Started, asked: str, held: str) -> None:
    startup.start_preload(read_checkpoint(BUNDLED_DIRECTORY), "auto", asked)
    assert started == [(BUNDLED_DIRECTORY, held)]


def test_nothing_is_preloaded_for_an_accelerator(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPT2TG_DEVICE")
    bundled = read_checkpoint(BUNDLED_DIRECTORY)
    for device in ("cuda", "cuda:1", "mps"):
        startup.start_preload(bundled, device, "fp32")
    monkeypatch.setattr(startup, "ACCELERATORS", (str(BUNDLED_DIRECTORY),))  # any path that exists
    startup.start_preload(bundled, "auto", "fp32")
    assert not started
    startup.start_preload(bundled, "cpu", "fp32")
    assert len(started) == 1


def test_nothing_is_preloaded_once_torch_is_imported(started: Started) -> None:
    assert startup.import_torch(read_checkpoint(BUNDLED_DIRECTORY), "cpu", "fp32") is None
    assert not started


@pytest.mark.parametrize(
    "change",
    [{"vocab_size": 4_000_000, "n_embd": 4096}, {"n_layer": 512, "n_embd": 4096, "n_head": 8}, {"n_inner": 200_000}],
    ids=str,
)
def test_nothing_is_preloaded_that_the_files_cannot_hold(
    started: Started, model_dir: Path, tmp_path: Path, change: dict[str, int]
) -> None:
    directory = shutil.copytree(model_dir, tmp_path / "model")
    startup.start_preload(read_checkpoint(directory), "cpu", "fp32")
    assert len(started) == 1
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(json.dumps({**config, **change}), encoding="utf-8")
    startup.start_preload(read_checkpoint(directory), "cpu", "fp32")
    assert len(started) == 1


@pytest.mark.parametrize(
    ("platform", "missing"), [("linux", ["cuda", "cuda:1", "mps"]), ("darwin", []), ("win32", ["mps"])]
)
def test_missing_device_is_refused_without_torch(
    monkeypatch: pytest.MonkeyPatch, platform: str, missing: list[str]
) -> None:
    monkeypatch.setattr(startup.sys, "platform", platform)
    monkeypatch.setattr(startup, "ACCELERATORS", ())
    monkeypatch.setattr(startup, "BOARDS", ())
    for device in ("auto", "cpu", "cuda", "cuda:1", "mps"):
        if device in missing:
            with pytest.raises(UserError, match=f"{device} asked for, but this machine has no such device") as caught:
                startup.check_device(device)
            assert caught.value.option == "device"
        else:
            startup.check_device(device)
