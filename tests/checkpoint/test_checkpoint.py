"""A checkpoint is resolved from its name: directory, shape, the model of an adapter, and tuned settings."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import GPT2LMHeadModel

from gpt2tg.checkpoint.checkpoint import read_checkpoint, resolve_checkpoint
from gpt2tg.checkpoint.config import read_shape
from gpt2tg.checkpoint.file_names import GENERATION_CONFIG
from gpt2tg.checkpoint.find import BUNDLED_DIRECTORY
from gpt2tg.checkpoint.tuned_settings import write_tuned_settings
from gpt2tg.errors import UserError
from gpt2tg.options import DecodingOptions

TUNED = DecodingOptions(decoding="top_p", temperature=1.1)


@pytest.fixture
def directory(model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the model's directory to change at will."""
    return shutil.copytree(model_dir, tmp_path / "model")


def test_directory_is_resolved_with_its_shape(directory: Path) -> None:
    found = resolve_checkpoint(str(directory), "model_path")
    assert (found.name, found.option, found.directory) == (str(directory), "model_path", directory)
    assert found.shape == read_shape(directory)
    assert found.base is None
    assert found.is_local
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.directory = Path()  # type: ignore[misc]  # that it is refused is the point


def test_bundled_model_is_not_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = resolve_checkpoint("gpt2-tiny")
    assert (found.name, found.directory, found.is_local) == ("gpt2-tiny", BUNDLED_DIRECTORY, False)


def test_checkpoint_of_a_run_is_chosen(model_dir: Path, tmp_path: Path) -> None:
    for step in (5, 10):
        shutil.copytree(model_dir, tmp_path / f"checkpoint-{step}")
    for which, step in (("last", 10), ("5", 5)):
        found = resolve_checkpoint(str(tmp_path), which=which)
        assert found.name == str(found.directory) == str(tmp_path / f"checkpoint-{step}")
    with pytest.raises(UserError, match="holds no checkpoint of that step"):
        resolve_checkpoint(str(tmp_path), which="7")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it
def test_adapter_has_its_model_as_base(model_dir: Path, tmp_path: Path) -> None:
    config = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)
    get_peft_model(GPT2LMHeadModel.from_pretrained(model_dir), config).save_pretrained(tmp_path)
    found = read_checkpoint(tmp_path)
    assert found.base is not None
    assert found.base.directory == model_dir
    assert found.base.base is None
    assert found.shape == found.base.shape


def test_tuned_settings_are_read_when_they_are_needed(directory: Path) -> None:
    write_tuned_settings(directory, TUNED)
    assert read_checkpoint(directory).tuned_settings["temperature"] == 1.1
    config = json.loads((directory / GENERATION_CONFIG).read_text())
    (directory / GENERATION_CONFIG).write_text(json.dumps({**config, "temperature": "hot"}))
    found = read_checkpoint(directory)  # scoring and evaluation do not need them
    with pytest.raises(UserError, match="temperature is hot"):
        _ = found.tuned_settings


def test_models_of_the_hub_have_no_tuned_settings(directory: Path) -> None:
    write_tuned_settings(directory, TUNED)
    assert dataclasses.replace(read_checkpoint(directory), is_local=False).tuned_settings == {}
