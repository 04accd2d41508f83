"""What is made ready while torch is imported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gpt2tg.checkpoint.find import BUNDLED_DIRECTORY
from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.engine.cpu import preload, startup
from gpt2tg.errors import UserError

Begun = list[tuple[Path, str]]


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> Begun:
    """What is begun to be made ready, with its precision, on a machine that has no GPU."""
    models: Begun = []

    def begin(directory: Path, shape: ModelShape, precision: str) -> None:
        models.append((directory, precision))

    monkeypatch.setattr(preload, "begin", begin)
    monkeypatch.setattr(startup, "ACCELERATORS", ())
    return models


@pytest.mark.parametrize(("asked", "held"), [("auto", "fp32"), ("fp32", "fp32"), ("fp16", "fp16"), ("int8", "int8")])
def test_a_model_is_made_ready_in_its_precision(begun: Begun, asked: str, held: str) -> None:
    startup.make_ready(str(BUNDLED_DIRECTORY), "model_path", "auto", asked)
    assert begun == [(BUNDLED_DIRECTORY, held)]


def test_nothing_is_begun_where_it_would_be_for_nothing(begun: Begun, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = str(BUNDLED_DIRECTORY)
    for name, device in (("some-name/of-the-hub", "auto"), ("gpt2", "auto"), (bundled, "cuda"), (bundled, "mps")):
        startup.make_ready(name, "model_path", device, "fp32")
    monkeypatch.setattr(startup, "ACCELERATORS", (bundled,))  # something that is there
    startup.make_ready(bundled, "model_path", "auto", "fp32")
    assert not begun
    startup.make_ready(bundled, "model_path", "cpu", "fp32")
    assert len(begun) == 1


def test_a_directory_without_a_model_is_refused_before_torch_is_imported(begun: Begun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no model") as caught:
        startup.make_ready(str(tmp_path), "model_path", "auto", "fp32")
    assert caught.value.option == "model_path"
    assert not begun


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "x" * 300, "x\0y", "no-such-directory"], ids=repr)
def test_a_name_that_is_no_directory_is_left_to_who_looks_for_models(begun: Begun, name: str) -> None:
    startup.make_ready(name, "model_path", "cpu", "fp32")
    assert not begun


@pytest.mark.parametrize(
    "change",
    [{"vocab_size": 4_000_000, "n_embd": 4096}, {"n_layer": 512, "n_embd": 4096, "n_head": 8}, {"n_inner": 200_000}],
    ids=str,
)
def test_nothing_is_begun_for_a_model_that_its_files_cannot_hold(
    begun: Begun, model_dir: Path, tmp_path: Path, change: dict[str, int]
) -> None:
    directory = shutil.copytree(model_dir, tmp_path / "model")
    startup.make_ready(str(directory), "model_path", "cpu", "fp32")
    assert len(begun) == 1
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(json.dumps({**config, **change}), encoding="utf-8")
    startup.make_ready(str(directory), "model_path", "cpu", "fp32")
    assert len(begun) == 1
