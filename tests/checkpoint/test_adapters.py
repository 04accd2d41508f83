"""LoRA adapters that peft wrote: the same logits as peft, or a refusal that says why."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

from gpt2tg.engine.contexts import new_context
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import load

pytestmark = [
    # peft uses a deprecated name of transformers.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    # peft warns about settings that it supports and that people use.
    pytest.mark.filterwarnings("ignore:.*embedding layers found:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Adapter .default.* have invalid shape"),  # peft, of a bias
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True but:UserWarning"),
]

IDS = [[5, 80, 7, 33, 12, 250, 3]]


def write_adapter(
    model_dir: Path, directory: Path, rows: int | None = None, saving: dict | None = None, **settings: object
) -> torch.Tensor:
    """Write an adapter with random weights in both factors. Return the logits that peft computes with it.

    Args:
        rows: of the embedding, to resize it first.
        saving: arguments of peft's save_pretrained.
    """
    saving = saving or {}
    base = GPT2LMHeadModel.from_pretrained(model_dir, local_files_only=True)
    if rows:
        base.resize_token_embeddings(rows, mean_resizing=False)
    defaults = dict(r=4, lora_alpha=12, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    model = get_peft_model(base, LoraConfig(**{**defaults, **settings})).eval()
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.3)
        elif weight.requires_grad:
            weight.data += 0.1 * torch.randn_like(weight)
    model.save_pretrained(directory, **saving)
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits[0, -1]


def ours(directory: Path) -> torch.Tensor:
    return new_context(load(str(directory)).model, 64).start(IDS)[0]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"r": 2, "lora_alpha": 1, "use_rslora": True},
        {"target_modules": ["c_attn", "c_proj", "c_fc"]},
        {"target_modules": ["h.1.mlp.c_fc"]},
        {"target_modules": "all-linear"},
        {"target_modules": ["c_attn", "lm_head"]},
        {"target_modules": ["c_attn", "c_proj"], "exclude_modules": ["h.0.attn.c_attn"]},
        {"rank_pattern": {"h.1.attn.c_attn": 2}},
        {
            "alpha_pattern": {"h.0.attn.c_attn": 5, "h.1.attn.c_attn": 3},
            "rank_pattern": {"c_attn": 2},
            "use_rslora": True,
        },
        {"alpha_pattern": {"^transformer.h.0.attn.c_attn": 3}},
        {"use_dora": True},
        {"use_dora": True, "use_rslora": True, "target_modules": "all-linear", "alpha_pattern": {"c_fc": 2}},
        {"use_dora": True, "target_modules": ["c_attn", "lm_head"]},
        {"target_modules": ["c_attn", "wte"]},
        {"use_dora": True, "target_modules": ["wte"]},
        {"trainable_token_indices": [5, 80]},
        {"trainable_token_indices": {"wte": [80, 5]}},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["wte"]},
        {"modules_to_save": ["wte", "lm_head", "ln_f"]},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"saving": {"save_embedding_layers": True}},
        {"saving": {"safe_serialization": False}},
    ],
    ids=str,
)
def test_adapter_gives_the_logits_of_peft(model_dir: Path, tmp_path: Path, settings: dict) -> None:
    expected = write_adapter(model_dir, tmp_path / "adapter", **settings)
    torch.testing.assert_close(ours(tmp_path / "adapter"), expected, atol=1e-4, rtol=0)
    assert (ours(model_dir) - expected).abs().max() > 0.1


@pytest.mark.parametrize("form", ["adapter_model.safetensors", "adapter_model.bin"])
def test_adapter_with_resized_embedding_gives_the_logits_of_peft(model_dir: Path, tmp_path: Path, form: str) -> None:
    saving = {"save_embedding_layers": True, "safe_serialization": form.endswith("safetensors")}
    expected = write_adapter(model_dir, tmp_path, rows=310, saving=saving)
    assert (tmp_path / form).is_file()
    if form.endswith("bin"):  # its shapes are not read without torch
        with pytest.raises(UserError, match=r"wte\.weight of the shape \(310, 32\) does not fit the model"):
            load(str(tmp_path))
        return
    found = load(str(tmp_path))
    torch.testing.assert_close(new_context(found.model, 64).start(IDS)[0], expected, atol=1e-4, rtol=0)
    assert any("10 of the model's 310" in note for note in found.notes)


def test_tokenizer_and_config_default_to_those_of_the_model(model_dir: Path, tmp_path: Path) -> None:
    write_adapter(model_dir, tmp_path)
    assert load(str(tmp_path)).tokenizer.encode("An owl") == load(str(model_dir)).tokenizer.encode("An owl")
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(model_dir / name, tmp_path)
    assert load(str(tmp_path)).tokenizer.encode("An owl") == load(str(model_dir)).tokenizer.encode("An owl")


def test_adapter_for_an_adapter_applies_both(model_dir: Path, tmp_path: Path) -> None:
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


def pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def truncate(directory: Path) -> None:
    path = directory / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "is truncated or broken"),
        (lambda directory: (directory / "adapter_model.safetensors").unlink(), "adapter_model.safetensors is missing"),
        (lambda directory: (directory / "adapter_config.json").write_text("{"), "adapter_config.json is no valid JSON"),
        (lambda directory: edit(directory, peft_type="PREFIX_TUNING"), "only LoRA is supported"),
        (lambda directory: edit(directory, use_dora=True), "without lora_magnitude_vector"),
        (lambda directory: edit(directory, alpha_pattern={"c_attn": "3"}), "alpha_pattern is .* not a number"),
        (lambda directory: edit(directory, alpha_pattern={"c_(attn": 3}), "alpha_pattern is .*unterminated"),
        (lambda directory: edit(directory, alpha_pattern=["c_attn"]), "alpha_pattern is"),
        (lambda directory: edit(directory, init_lora_weights="pissa"), "init_lora_weights pissa"),
        (lambda directory: edit(directory, init_lora_weights="pissa_niter_16"), "init_lora_weights pissa_niter_16"),
        (lambda directory: edit(directory, init_lora_weights="olora"), "init_lora_weights olora"),
        (lambda directory: edit(directory, init_lora_weights="loftq", loftq_config={"loftq_bits": 4}), "loftq"),
        (lambda directory: edit(directory, init_lora_weights="corda"), "init_lora_weights corda"),
        (lambda directory: edit(directory, lora_bias=True), "lora_bias True"),
        (lambda directory: edit(directory, trainable_token_indices=[5, 80]), "no trainable_tokens_delta"),
        (lambda directory: edit(directory, trainable_token_indices=[-1]), "not a list of token ids"),
        (lambda directory: edit(directory, trainable_token_indices={"c_attn": [1]}), "not a list of token ids"),
        (lambda directory: edit(directory, target_parameters=["h.0.attn.c_attn.weight"]), "target_parameters"),
        (lambda directory: edit(directory, layer_replication=[[0, 1], [0, 2]]), "layer_replication"),
        (lambda directory: edit(directory, ensure_weight_tying=True), "ensure_weight_tying True"),
        (lambda directory: edit(directory, alora_invocation_tokens=[5]), "alora_invocation_tokens"),
        (lambda directory: edit(directory, a_future_setting={"on": True}), "a_future_setting"),
        (lambda directory: pointer(directory / "adapter_config.json"), "git lfs pull"),
        (lambda directory: pointer(directory / "adapter_model.safetensors"), "git lfs pull"),
        (lambda directory: edit(directory, base_model_name_or_path=None), "does not name the model"),
        (lambda directory: edit(directory, base_model_name_or_path="/nowhere/model"), "which cannot be found"),
        (
            lambda directory: edit(directory, base_model_name_or_path="gpt2-tiny"),
            "does not fit the model: .* on gpt2-tiny",
        ),
        (lambda directory: edit(directory, base_model_name_or_path=str(directory)), "for itself"),
    ],
)
def test_unsupported_or_broken_adapter_is_refused(
    model_dir: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    write_adapter(model_dir, tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "held"),
    [
        ({"lora_bias": True}, "lora_B.bias"),
        ({"use_dora": True}, "lora_magnitude_vector"),
        ({"trainable_token_indices": [5, 80]}, "without trainable_token_indices"),
    ],
    ids=str,
)
def test_unsupported_tensors_are_refused_by_name(model_dir: Path, tmp_path: Path, settings: dict, held: str) -> None:
    """Even if the settings do not mention them."""
    write_adapter(model_dir, tmp_path, saving={"save_embedding_layers": False}, **settings)
    edit(tmp_path, use_dora=False, trainable_token_indices=None, lora_bias=False)
    with pytest.raises(UserError, match=held):
        load(str(tmp_path))


def test_adapter_applies_to_an_untied_head(model_dir: Path, tmp_path: Path) -> None:
    base = shutil.copytree(model_dir, tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    save_file({**weights, "lm_head.weight": weights["transformer.wte.weight"] + 1}, base / "model.safetensors")
    expected = write_adapter(base, tmp_path / "adapter", target_modules=["c_attn", "lm_head"])
    torch.testing.assert_close(ours(tmp_path / "adapter"), expected, atol=1e-3, rtol=0)


def test_code_in_a_pickled_adapter_is_not_run(model_dir: Path, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "owned"),)

    write_adapter(model_dir, tmp_path / "adapter", saving={"safe_serialization": False})
    torch.save({"lora_A.weight": Attack()}, tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(UserError, match="nothing in it was run"):
        load(str(tmp_path / "adapter"))
    assert not (tmp_path / "owned").exists()


def ours_with(model: Path, *adapters: Path) -> torch.Tensor:
    found = load(str(model), adapters=[str(adapter) for adapter in adapters])
    return new_context(found.model, 64).start(IDS)[0]


def test_chosen_adapters_give_the_logits_of_peft(model_dir: Path, tmp_path: Path) -> None:
    """Also if the model that they were trained on is no longer where it was; the last one is in a run's directory."""
    write_adapter(model_dir, tmp_path / "one")
    write_adapter(model_dir, tmp_path / "two" / "adapter", r=2, target_modules=["c_proj"], use_rslora=True)
    shutil.copytree(model_dir, tmp_path / "two", dirs_exist_ok=True)
    base = GPT2LMHeadModel.from_pretrained(model_dir, local_files_only=True)
    model = PeftModel.from_pretrained(base, tmp_path / "one", "one").eval()
    model.load_adapter(tmp_path / "two" / "adapter", "two")
    edit(tmp_path / "one", base_model_name_or_path="/nowhere/model")
    for names, adapters in ((["one"], ["one"]), (["two"], ["two"]), (["one", "two"], ["one", "two"])):
        model.base_model.set_adapter(names)
        with torch.no_grad():
            expected = model(torch.tensor(IDS)).logits[0, -1]
        found = ours_with(model_dir, *(tmp_path / name for name in adapters))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    notes = load(str(model_dir), adapters=[str(tmp_path / "one"), str(tmp_path / "two")]).notes
    assert notes == [f"{tmp_path / 'one'} was trained on /nowhere/model, and is now applied to {model_dir}"]


def test_unfit_adapter_is_refused(model_dir: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    write_adapter(model_dir, adapter)
    with pytest.raises(UserError, match="holds a whole model and no adapter"):
        ours_with(model_dir, model_dir)
    with pytest.raises(UserError, match="holds no adapter: give a directory"):
        ours_with(model_dir, tmp_path)
    with pytest.raises(UserError, match="nowhere cannot be found, here or on the hub"):
        ours_with(model_dir, tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"not fit the model: the adapter was trained on {model_dir}"):
        ours_with(Path("gpt2-tiny"), adapter)
    shutil.copy(model_dir / "config.json", adapter)
    with pytest.raises(UserError, match=f"does not fit gpt2-tiny, whose n_embd is 288: .*{model_dir}, whose n_embd is"):
        ours_with(Path("gpt2-tiny"), adapter)
