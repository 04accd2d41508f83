"""The fingerprint of a model's weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from gpt2tg.checkpoint.checkpoint import read_checkpoint
from gpt2tg.checkpoint.fingerprint import weights_fingerprint


def test_fingerprint_depends_on_the_weights_alone(model_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model_dir, copy)
    (copy / "README.md").write_text("new")
    expected = weights_fingerprint(read_checkpoint(model_dir))
    assert weights_fingerprint(read_checkpoint(copy)) == expected
    weights = load_file(copy / "model.safetensors")
    changed = {name: tensor + 1e-3 * torch.randn_like(tensor) for name, tensor in weights.items()}
    save_file(changed, copy / "model.safetensors")
    assert weights_fingerprint(read_checkpoint(copy)) != expected
