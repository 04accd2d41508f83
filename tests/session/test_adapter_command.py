"""/adapter: other adapters on the model of a session."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from talk import Talk, greedy_options, greedy_text
from transformers import GPT2LMHeadModel

from gpt2tg.generation.generator import load


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_adapters_are_swapped(model_dir: Path, tmp_path: Path) -> None:
    settings = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False, lora_alpha=400)
    base = GPT2LMHeadModel.from_pretrained(model_dir, local_files_only=True)
    get_peft_model(base, settings).save_pretrained(tmp_path / "pirate")
    plain, pirate = load(model_dir), load(tmp_path / "pirate")
    expected = [greedy_text(generator, "A fox") for generator in (pirate, plain)]
    assert expected[0] != expected[1]
    talk = Talk(plain, greedy_options())
    written, said = talk.type(f"/adapter {tmp_path / 'pirate'}", "A fox")
    assert written.strip() == expected[0].strip()
    assert said[0].startswith(f"{model_dir} with {tmp_path / 'pirate'} on cpu")
    _, said = talk.type("/adapter /nowhere/else")
    assert said[0].startswith("error: adapter /nowhere/else cannot be found")
    written, said = talk.type("/adapter off", "A fox")
    assert written.strip() == expected[1].strip()
    assert said[0].startswith(f"{model_dir} on cpu")
