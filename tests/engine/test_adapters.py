"""LoRA adapters, written by peft and read by us."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GPT2LMHeadModel

from gpt2tg.errors import UserError
from gpt2tg.generation import load

# peft asks transformers by a name that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

IDS = [[5, 80, 7, 33, 12, 250, 3]]


def write_adapter(model_dir: Path, directory: Path, **settings: object) -> torch.Tensor:
    """An adapter with random weights in both factors, and the logits that peft computes with it."""
    base = GPT2LMHeadModel.from_pretrained(model_dir, local_files_only=True)
    defaults = dict(r=4, lora_alpha=12, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    model = get_peft_model(base, LoraConfig(**{**defaults, **settings})).eval()
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(directory)
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits[0, -1]


def ours(directory: Path) -> torch.Tensor:
    return load(str(directory)).model.context(64).start(IDS)[0]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"r": 2, "lora_alpha": 1, "use_rslora": True},
        {"target_modules": ["c_attn", "c_proj", "c_fc"]},
        {"target_modules": ["h.1.mlp.c_fc"]},
    ],
    ids=str,
)
def test_an_adapter_is_computed_as_peft_does(model_dir: Path, tmp_path: Path, settings: dict) -> None:
    expected = write_adapter(model_dir, tmp_path / "adapter", **settings)
    torch.testing.assert_close(ours(tmp_path / "adapter"), expected, atol=1e-4, rtol=0)
    assert (ours(model_dir) - expected).abs().max() > 0.1


def test_an_adapter_brings_its_own_tokenizer_and_config_or_takes_those_of_its_model(
    model_dir: Path, tmp_path: Path
) -> None:
    write_adapter(model_dir, tmp_path)
    assert load(str(tmp_path)).tokenizer.encode("An owl") == load(str(model_dir)).tokenizer.encode("An owl")
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(model_dir / name, tmp_path)
    assert load(str(tmp_path)).tokenizer.encode("An owl") == load(str(model_dir)).tokenizer.encode("An owl")


def test_an_adapter_for_an_adapter_adds_both(model_dir: Path, tmp_path: Path) -> None:
    write_adapter(model_dir, tmp_path / "one")
    first = PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(model_dir), tmp_path / "one").merge_and_unload()
    first.save_pretrained(tmp_path / "merged")
    shutil.copy(model_dir / "tokenizer.json", tmp_path / "merged")
    expected = write_adapter(tmp_path / "merged", tmp_path / "two", r=3)
    edit(tmp_path / "two", base_model_name_or_path=str(tmp_path / "one"))
    torch.testing.assert_close(ours(tmp_path / "two"), expected, atol=1e-4, rtol=0)


def edit(directory: Path, **values: object) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def cut(directory: Path) -> None:
    path = directory / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "is cut or broken"),
        (lambda directory: (directory / "adapter_model.safetensors").unlink(), "is cut, broken or missing"),
        (lambda directory: (directory / "adapter_config.json").write_text("{"), "cannot be read"),
        (lambda directory: edit(directory, peft_type="PREFIX_TUNING"), "only LoRA can be read"),
        (lambda directory: edit(directory, use_dora=True), "use_dora True"),
        (lambda directory: edit(directory, alpha_pattern={"c_attn": 3}), "alpha_pattern"),
        (lambda directory: edit(directory, base_model_name_or_path=None), "does not name the model"),
        (lambda directory: edit(directory, base_model_name_or_path="/nowhere/model"), "which cannot be had"),
        (lambda directory: edit(directory, base_model_name_or_path="gpt2-tiny"), "does not fit the model gpt2-tiny"),
        (lambda directory: edit(directory, base_model_name_or_path=str(directory)), "for itself"),
    ],
)
def test_what_cannot_be_read_is_refused(
    model_dir: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    write_adapter(model_dir, tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        load(str(tmp_path))
