"""The models of a folder, adapters among them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from test_adapters import pytestmark as warnings_of_peft
from test_adapters import write_adapter

from gpt2tg.checkpoint.checkpoint import resolve_checkpoint
from gpt2tg.checkpoint.folder import models_in
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import load_checkpoint

pytestmark = warnings_of_peft


def test_folder_lists_models_runs_and_adapters(model_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(model_dir, tmp_path / "whole")
    shutil.copytree(model_dir, tmp_path / "run" / "checkpoint-5")
    write_adapter(model_dir, tmp_path / "adapter")
    for name, base in (("lost", "nobody/has-it"), ("moved", "/elsewhere/whole")):
        shutil.copytree(tmp_path / "adapter", tmp_path / name)
        config = tmp_path / name / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": base}))
    (tmp_path / "empty").mkdir()
    (tmp_path / "a file").write_text("")
    found = {model.name: model for model in models_in(tmp_path)}
    assert {name: (model.kind, model.checkpoint is not None) for name, model in found.items()} == {
        "adapter": ("adapter", True),
        "lost": ("adapter", False),
        "moved": ("adapter", True),
        "run": ("model", True),
        "whole": ("model", True),
    }
    assert found["lost"].note == "needs the model nobody/has-it, which is not here: put it into the folder"
    assert found["run"].note == "the newest checkpoint of a training run: 2 layers, 64 tokens of context"
    whole = resolve_checkpoint(str(model_dir))
    known = {model.name: model for model in models_in(tmp_path, [whole])}
    for model in (found["moved"], found["adapter"], known["adapter"]):
        assert model.checkpoint is not None
        assert load_checkpoint(model.checkpoint).model.shape.n_positions == 64


def test_broken_model_says_why(model_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(model_dir, tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").unlink()
    (model,) = models_in(tmp_path)
    assert model.checkpoint is None
    assert "weights" in model.note or "safetensors" in model.note
    with pytest.raises(UserError, match=r"models_folder .* cannot be read"):
        models_in(tmp_path / "nowhere")
