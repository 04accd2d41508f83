"""Checkpoints that other tools wrote: the same text as transformers, or a refusal that says what is wrong."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import random_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from gpt2tg.checkpoint.checkpoint import read_checkpoint
from gpt2tg.checkpoint.find import find_directory
from gpt2tg.checkpoint.tensor_files import Safetensors
from gpt2tg.commands.loading import load_generator
from gpt2tg.decoding.interface import NotFiniteError
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import Generator, load
from gpt2tg.inspection.tokens import inspect_text, next_token
from gpt2tg.options import decoding_options

PROMPT = "The owl sold silence"
WTE, HEAD = "transformer.wte.weight", "lm_head.weight"

Tensors = dict[str, Tensor]


@pytest.fixture
def weights(model_dir: Path) -> Tensors:
    """Return the weights by their stored names. The head shares the embedding and has no name of its own."""
    return load_file(model_dir / "model.safetensors")


def store(directory: Path, weights: Tensors, form: str = "safetensors") -> None:
    """Replace the weights of a directory."""
    (directory / "model.safetensors").unlink(missing_ok=True)
    if form == "safetensors":
        copies = {name: tensor.contiguous().clone() for name, tensor in weights.items()}
        save_file(copies, directory / "model.safetensors", {"format": "pt"})
    else:
        torch.save(weights, directory / "pytorch_model.bin")


def store_shards(directory: Path, parts: list[Tensors], index: dict[str, int], form: str = "bin") -> list[Path]:
    """Replace the weights of a directory by shards. `index` has the number of the shard for each tensor."""
    (directory / "model.safetensors").unlink()
    stem = "pytorch_model" if form == "bin" else "model"
    files = [directory / f"{stem}-{n:05}-of-{len(parts):05}.{form}" for n in range(1, len(parts) + 1)]
    for file, part in zip(files, parts, strict=True):
        torch.save(part, file) if form == "bin" else save_file(part, file, {"format": "pt"})
    content = {"metadata": {}, "weight_map": {name: files[place].name for name, place in index.items()}}
    (directory / f"{stem}.{form}.index.json").write_text(json.dumps(content))
    return files


def configure(directory: Path, **values: Any) -> None:
    """Change fields of config.json. None removes a field."""
    config = {**json.loads((directory / "config.json").read_text()), **values}
    (directory / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def ours(directory: Path) -> tuple[int, ...]:
    """Return the new ids of greedy decoding."""
    (sample,) = load(str(directory)).generate(PROMPT, decoding_options(dict(decoding="greedy", max_new_tokens=20)))
    return sample.ids


def theirs(directory: Path, **settings: Any) -> tuple[int, ...]:
    """Return the new ids of greedy decoding with transformers."""
    model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True, dtype=torch.float32).eval()
    ids = load(str(directory)).tokenizer.encode(PROMPT)
    settings = {"do_sample": False, "max_new_tokens": 20, "pad_token_id": 0, **settings}
    return tuple(model.generate(torch.tensor([ids]), **settings)[0, len(ids) :].tolist())


def refusal(directory: Path) -> str:
    """Return the error that refuses a directory."""
    with pytest.raises(UserError) as caught:
        load(str(find_directory(str(directory))))
    assert caught.value.message.isprintable()
    return caught.value.message


# --- the tensor that embedding and head share ---


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("keeps", [(WTE,), (HEAD,), (WTE, HEAD)], ids=["embedding", "head", "both"])
def test_shared_tensor_is_read_under_either_name(
    checkpoint: Path, model_dir: Path, weights: Tensors, form: str, keeps: tuple[str, ...]
) -> None:
    shared = weights.pop(WTE)
    store(checkpoint, {**weights, **dict.fromkeys(keeps, shared)}, form)
    assert ours(checkpoint) == theirs(checkpoint) == theirs(model_dir)
    assert load(str(checkpoint)).notes == []


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_stored_head_that_differs_is_used_and_noted(
    checkpoint: Path, model_dir: Path, weights: Tensors, form: str
) -> None:
    store(checkpoint, {**weights, HEAD: weights[WTE].roll(1, 0).clone()}, form)
    assert ours(checkpoint) == theirs(checkpoint) != theirs(model_dir)
    (note,) = load(str(checkpoint)).notes
    assert "lm_head.weight differs from wte.weight" in note


def test_head_in_another_precision_is_the_same_head(checkpoint: Path, weights: Tensors) -> None:
    half = {name: tensor.half() for name, tensor in weights.items()}
    store(checkpoint, {**half, HEAD: half[WTE].float()})
    assert load(str(checkpoint)).notes == []
    assert ours(checkpoint) == theirs(checkpoint)


def test_head_of_another_size_is_refused(checkpoint: Path, weights: Tensors) -> None:
    store(checkpoint, {**weights, HEAD: torch.ones(301, 32)})
    with pytest.raises(UserError, match=r"lm_head\.weight has the shape \(301, 32\)"):
        load(str(checkpoint))


def test_notes_are_printed_once_on_stderr(
    checkpoint: Path, weights: Tensors, capsys: pytest.CaptureFixture[str]
) -> None:
    store(checkpoint, {**weights, "score.weight": torch.ones(2, 32)})
    load_generator(read_checkpoint(checkpoint), "auto", "auto")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("score.weight") == 1


# --- names ---


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize(
    "prefix",
    ["_orig_mod.", "module.", "module._orig_mod.", "model.", "_forward_module.model.", "pretrained_model.", "lm.gpt2."],
)
def test_names_with_any_prefix_are_read(
    checkpoint: Path, model_dir: Path, weights: Tensors, form: str, prefix: str
) -> None:
    store(checkpoint, {f"{prefix}{name}": tensor for name, tensor in weights.items()}, form)
    assert ours(checkpoint) == theirs(model_dir)


def test_names_of_wrapped_layers_are_read(checkpoint: Path, model_dir: Path, weights: Tensors) -> None:
    """The names that compiling single blocks, activation checkpointing and FSDP produce."""
    wrapped = {"h.0.": "h.0._orig_mod.", "h.1.": "h.1._fsdp_wrapped_module._checkpoint_wrapped_module."}
    for plain, behind in wrapped.items():
        weights = {name.replace(plain, behind): tensor for name, tensor in weights.items()}
    store(checkpoint, weights)
    assert ours(checkpoint) == theirs(model_dir)


def test_plain_names_take_precedence_over_another_model(checkpoint: Path, weights: Tensors) -> None:
    other = {f"teacher.{name}": tensor + 1 for name, tensor in weights.items()}
    store(checkpoint, {**other, **weights})
    assert ours(checkpoint) == theirs(checkpoint)
    (note,) = load(str(checkpoint)).notes
    assert "teacher.transformer" in note
    assert f"({len(other)} in all)" in note


def test_tensor_may_be_stored_twice_with_the_same_values(checkpoint: Path, weights: Tensors) -> None:
    halves = {name: tensor.half() for name, tensor in weights.items()}
    store(checkpoint, halves)
    expected = theirs(checkpoint)
    copies = {f"lm.{name}": tensor.double() for name, tensor in halves.items()}
    store(checkpoint, {**{f"model.{name}": tensor for name, tensor in halves.items()}, **copies})
    assert ours(checkpoint) == expected


def test_two_models_in_one_file_are_not_mixed(checkpoint: Path, weights: Tensors) -> None:
    pair = {f"{who}.{name}": tensor + shift for shift, who in enumerate("ab") for name, tensor in weights.items()}
    store(checkpoint, pair)
    message = refusal(checkpoint)
    assert "stored twice with different values" in message
    assert "a.transformer." in message
    assert "b.transformer." in message


def test_unused_tensors_are_noted_but_masks_are_not(checkpoint: Path, weights: Tensors) -> None:
    masks = {f"transformer.h.{n}.attn.{name}": torch.ones(1) for n in range(2) for name in ("bias", "masked_bias")}
    store(checkpoint, {**weights, **masks})
    assert load(str(checkpoint)).notes == []
    extra = {"score.weight": torch.ones(2, 32), "transformer.h.2.ln_1.weight": torch.ones(32)}
    store(checkpoint, {**weights, **masks, **extra})
    assert ours(checkpoint) == theirs(checkpoint)
    (note,) = load(str(checkpoint)).notes
    assert all(name in note for name in extra)
    assert "attn.bias" not in note


def test_adapter_beside_whole_weights_is_ignored_and_noted(checkpoint: Path, model_dir: Path) -> None:
    (checkpoint / "adapter_config.json").write_text("{}")
    assert ours(checkpoint) == theirs(model_dir)
    (note,) = load(str(checkpoint)).notes
    assert "adapter_config.json is not used" in note


def test_unmerged_adapter_is_refused(checkpoint: Path, weights: Tensors) -> None:
    name = "transformer.h.0.attn.c_attn"
    weights[f"{name}.base_layer.weight"] = weights.pop(f"{name}.weight")
    store(checkpoint, {**weights, f"{name}.lora_A.default.weight": torch.ones(4, 32)})
    assert "was not merged" in refusal(checkpoint)


# --- containers ---


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module"])
def test_weights_within_a_training_checkpoint_are_read(
    checkpoint: Path, model_dir: Path, weights: Tensors, key: str
) -> None:
    """Lightning, DeepSpeed and hand-written training loops save weights beside the state of the optimizer."""
    behind_prefix = {f"model.{name}": tensor for name, tensor in weights.items()}
    store(checkpoint, {key: behind_prefix, "epoch": 3, "optimizer": {"state": {0: torch.ones(2)}}}, "bin")
    assert ours(checkpoint) == theirs(model_dir)


def test_numbers_beside_pickled_weights_are_ignored(checkpoint: Path, weights: Tensors) -> None:
    store(checkpoint, {**weights, "step": 7}, "bin")
    assert ours(checkpoint) == theirs(checkpoint)


def test_two_sets_of_weights_within_a_pickle_are_refused(checkpoint: Path, weights: Tensors) -> None:
    store(checkpoint, {"model": weights, "state_dict": weights}, "bin")
    assert "holds several sets of weights (state_dict, model)" in refusal(checkpoint)


def test_models_in_folders_of_a_directory_are_named(checkpoint: Path, tmp_path: Path) -> None:
    """peft saves a named adapter in a folder, and some training scripts the best model."""
    (tmp_path / "top" / "mine").mkdir(parents=True)
    (tmp_path / "top" / "mine" / "adapter_config.json").write_text("{}")
    checkpoint.rename(tmp_path / "top" / "best")
    top = tmp_path / "top"
    assert f"give {top / 'best'} or {top / 'mine'}" in refusal(top)


def test_size_that_is_a_string_is_quoted_in_the_error(checkpoint: Path) -> None:
    configure(checkpoint, n_head="4")
    assert "n_head is '4', expected a whole number" in refusal(checkpoint)


def halves(weights: Tensors) -> list[Tensors]:
    names = list(weights)
    return [{name: weights[name] for name in part} for part in (names[: len(names) // 2], names[len(names) // 2 :])]


def test_sharded_pickles_are_read(checkpoint: Path, model_dir: Path, weights: Tensors) -> None:
    parts = halves(weights)
    store_shards(checkpoint, parts, {name: place for place, part in enumerate(parts) for name in part})
    assert ours(checkpoint) == theirs(checkpoint) == theirs(model_dir)


def test_missing_pickled_shard_is_named(checkpoint: Path, weights: Tensors) -> None:
    parts = halves(weights)
    files = store_shards(checkpoint, parts, {name: place for place, part in enumerate(parts) for name in part})
    files[1].unlink()
    assert f"{files[1].name} is missing" in refusal(checkpoint)


class Attack:
    """Make a directory when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.target,)


def test_code_in_a_pickled_shard_is_not_run(checkpoint: Path, tmp_path: Path, weights: Tensors) -> None:
    parts: list[dict[str, Any]] = [dict(part) for part in halves(weights)]
    files = store_shards(checkpoint, parts, {name: place for place, part in enumerate(parts) for name in part})
    torch.save({**parts[1], "x": Attack(tmp_path / "owned")}, files[1])
    assert "nothing in it was run" in refusal(checkpoint)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_index_decides_which_of_two_shards_is_read(
    checkpoint: Path, model_dir: Path, weights: Tensors, form: str
) -> None:
    parts = halves(weights)
    index = {name: place for place, part in enumerate(parts) for name in part}
    for place, part in enumerate(parts):
        name = next(name for name in weights if index[name] != place)
        part[name] = weights[name] + 1
    store_shards(checkpoint, parts, index, form)
    assert ours(checkpoint) == theirs(model_dir)


def test_tensor_is_found_although_the_index_is_wrong(checkpoint: Path, model_dir: Path, weights: Tensors) -> None:
    parts = halves(weights)
    index = {name: place for place, part in enumerate(parts) for name in part}
    first = next(iter(index))
    store_shards(checkpoint, parts, {**index, first: 1})
    assert ours(checkpoint) == theirs(checkpoint) == theirs(model_dir)


def test_tensor_that_only_the_index_lists_is_missing(checkpoint: Path, weights: Tensors) -> None:
    parts = halves(weights)
    index = {name: place for place, part in enumerate(parts) for name in part}
    del parts[1]["transformer.ln_f.bias"]
    store_shards(checkpoint, parts, index, "safetensors")
    assert "ln_f.bias is missing" in refusal(checkpoint)


def test_single_variant_of_the_weights_is_read(checkpoint: Path, model_dir: Path) -> None:
    expected = theirs(model_dir)
    (checkpoint / "model.safetensors").rename(checkpoint / "model.fp16.safetensors")
    assert ours(checkpoint) == expected
    shutil.copy(checkpoint / "model.fp16.safetensors", checkpoint / "model.bf16.safetensors")
    message = refusal(checkpoint)
    assert "model.bf16.safetensors, model.fp16.safetensors" in message


@pytest.mark.parametrize("name", ["tf_model.h5", "model-00001-of-00002.safetensors", "flax_model.msgpack", "m.gguf"])
def test_weights_in_another_format_are_named(checkpoint: Path, name: str) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / name)
    message = refusal(checkpoint)
    assert "holds no weights: expected model.safetensors" in message
    assert name in message


@pytest.mark.parametrize(
    "rest",
    ["model.safetensors.part", "model.safetensors.incomplete", ".cache/huggingface/download/x.0a1b.incomplete"],
)
def test_interrupted_download_is_recognised(checkpoint: Path, rest: str) -> None:
    (checkpoint / rest).parent.mkdir(parents=True, exist_ok=True)
    (checkpoint / "model.safetensors").rename(checkpoint / rest)
    assert "a download that was not finished: run it again" in refusal(checkpoint)


# --- types ---


def test_several_precisions_in_one_file_are_read(checkpoint: Path, weights: Tensors) -> None:
    kinds = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    store(checkpoint, {name: tensor.to(kinds[n % 4]) for n, (name, tensor) in enumerate(weights.items())})
    assert ours(checkpoint) == theirs(checkpoint)


@pytest.mark.parametrize(
    ("kind", "named"),
    [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8"), (torch.uint8, "U8"), (torch.int64, "I64")],
    ids=str,
)
def test_unsupported_type_is_refused_from_the_header(
    checkpoint: Path, weights: Tensors, monkeypatch: pytest.MonkeyPatch, kind: torch.dtype, named: str
) -> None:
    store(checkpoint, {**weights, "transformer.h.1.mlp.c_fc.weight": torch.zeros(32, 128).to(kind)})
    monkeypatch.setattr(Safetensors, "read", lambda *_: pytest.fail("weights were read"))
    message = refusal(checkpoint)
    assert "h.1.mlp.c_fc.weight" in message
    assert named in message


# --- config.json ---


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("quantization_config", {"quant_method": "gptq", "bits": 4}),
        ("quantization_config", {"load_in_8bit": True, "quant_method": "bitsandbytes"}),
        ("pruned_heads", {"0": [1]}),
        ("is_encoder_decoder", True),
        ("scale_attn_weights", "yes"),
        ("scale_attn_by_inverse_layer_idx", 1),
        ("tie_word_embeddings", "false"),
        ("reorder_and_upcast_attn", 0),
        ("add_cross_attention", []),
        ("n_inner", 0),
        ("num_hidden_layers", 3),
        ("hidden_size", 64),
    ],
    ids=str,
)
def test_unsupported_config_field_is_refused_by_name(checkpoint: Path, field: str, value: object) -> None:
    configure(checkpoint, **{field: value})
    message = refusal(checkpoint)
    assert "config.json" in message
    assert field in message


def test_sizes_may_have_the_names_of_other_models(checkpoint: Path, model_dir: Path) -> None:
    names = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
    configure(checkpoint, n_embd=None, n_layer=None, n_head=None, n_positions=None, **names)
    assert ours(checkpoint) == theirs(checkpoint) == theirs(model_dir)


def test_config_of_the_first_versions_is_read(checkpoint: Path, model_dir: Path) -> None:
    sizes = dict(vocab_size=300, n_positions=64, n_ctx=64, n_embd=32, n_layer=2, n_head=4)
    config = dict(initializer_range=0.02, layer_norm_epsilon=1e-5, **sizes)
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert ours(checkpoint) == theirs(model_dir)


@pytest.mark.parametrize(
    "fields",
    [
        dict(reorder_and_upcast_attn=True, scale_attn_by_inverse_layer_idx=True),
        dict(scale_attn_weights=False),
        dict(activation_function="relu", layer_norm_epsilon=0.1),
        dict(activation_function="gelu_fast", n_ctx=32, torchscript=True, use_bfloat16=False),
    ],
    ids=str,
)
def test_config_fields_have_the_effect_of_transformers(checkpoint: Path, fields: dict[str, Any]) -> None:
    configure(checkpoint, **fields)
    assert ours(checkpoint) == theirs(checkpoint)


def test_cross_attention_is_ignored_without_an_encoder(tmp_path: Path, model_dir: Path) -> None:
    random_model(add_cross_attention=True).save_pretrained(tmp_path)
    shutil.copy(model_dir / "tokenizer.json", tmp_path)
    assert ours(tmp_path) == theirs(tmp_path)
    (note,) = load(str(tmp_path)).notes
    assert "crossattention" in note


# --- Git LFS ---

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 11844840\n"


def write_pointer(file: Path) -> None:
    file.write_text(POINTER)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_git_lfs_pointer_is_named_as_such(checkpoint: Path, name: str) -> None:
    write_pointer(checkpoint / name)
    message = refusal(checkpoint)
    assert str(checkpoint / name) in message
    assert "git lfs pull" in message


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_git_lfs_pointer_in_place_of_other_weights_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / "model.safetensors").unlink()
    write_pointer(checkpoint / name)
    assert "git lfs pull" in refusal(checkpoint)


def test_git_lfs_pointer_in_place_of_a_shard_is_named(checkpoint: Path, weights: Tensors) -> None:
    parts = halves(weights)
    files = store_shards(checkpoint, parts, {name: place for place, part in enumerate(parts) for name in part})
    write_pointer(files[1])
    assert "git lfs pull" in refusal(checkpoint)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_git_lfs_pointer_is_found_with_the_directory(checkpoint: Path, name: str) -> None:
    """So that the refusal comes before a heavy import."""
    write_pointer(checkpoint / name)
    with pytest.raises(UserError, match="git lfs pull"):
        find_directory(str(checkpoint))


def test_git_lfs_pointer_of_an_unread_file_is_ignored(checkpoint: Path, model_dir: Path) -> None:
    for name in ("pytorch_model.bin", "tf_model.h5", "vocab.json"):
        write_pointer(checkpoint / name)
    assert ours(checkpoint) == theirs(model_dir)


# --- embedding rows without a token ---

UNUSED = list(range(300, 320))


@pytest.fixture
def padded(checkpoint: Path, weights: Tensors) -> Path:
    """Return a model with 20 embedding rows without a token.

    Each is 1.5 times the row of the token that greedy decoding chooses first, so they get the largest logits.
    """
    first = ours(checkpoint)[0]
    rows = 1.5 * weights[WTE][first].repeat(len(UNUSED), 1)
    store(checkpoint, {**weights, WTE: torch.cat([weights[WTE], rows])})
    configure(checkpoint, vocab_size=320)
    return checkpoint


def generated_ids(generator: Generator, **settings: Any) -> list[tuple[int, ...]]:
    return [sample.ids for sample in generator.generate(PROMPT, decoding_options(dict(max_new_tokens=20, **settings)))]


def test_rows_without_a_token_are_noted(padded: Path) -> None:
    (note,) = load(str(padded)).notes
    assert "20 of the model's 320 embedding rows" in note


def test_rows_without_a_token_are_never_chosen_greedily(padded: Path) -> None:
    assert set(theirs(padded)) & set(UNUSED)  # transformers alone would
    assert ours(padded) == theirs(padded, suppress_tokens=UNUSED)


def test_beams_pass_over_rows_without_a_token(padded: Path) -> None:
    found = generated_ids(load(str(padded)), decoding="beam", num_beams=4, num_sequences=1)
    assert found == [theirs(padded, suppress_tokens=UNUSED, num_beams=4)]


@pytest.mark.parametrize(
    "settings",
    [
        dict(decoding="sample", temperature=2.0),
        dict(decoding="top_k", top_k=320),
        dict(decoding="top_p", top_p=0.9),
        dict(decoding="contrastive", top_k=12, penalty_alpha=0.9),
        dict(decoding="greedy", no_repeat_ngram=1),
        dict(decoding="greedy", prompt_lookup=4),
    ],
    ids=str,
)
def test_rows_without_a_token_are_never_sampled(padded: Path, settings: dict[str, Any]) -> None:
    many = {} if settings["decoding"] in ("greedy", "contrastive") else dict(num_sequences=20, seed=1)
    ids = {token for text in generated_ids(load(str(padded)), **settings, **many) for token in text}
    assert ids
    assert not ids & set(UNUSED)


def test_rows_without_a_token_are_not_candidates(padded: Path) -> None:
    generator = load(str(padded))
    ids = generator.encode(PROMPT)
    model = GPT2LMHeadModel.from_pretrained(padded, local_files_only=True, dtype=torch.float32).eval()
    with torch.no_grad():
        probabilities = model(torch.tensor([ids])).logits[0, -1].softmax(0)
    candidates = next_token(generator, PROMPT, 1000).candidates
    assert len(candidates) == 300
    expected = probabilities[:300].sort(descending=True)
    assert candidates[0].id == int(expected.indices[0])
    assert [found.probability for found in candidates] == pytest.approx(expected.values.tolist(), abs=1e-6)
    assert all(1 <= token.rank <= 300 for token in inspect_text(generator, PROMPT))


def test_end_of_text_without_a_token_ends_the_text(padded: Path) -> None:
    (padded / "generation_config.json").unlink(missing_ok=True)
    configure(padded, eos_token_id=310)
    expected = theirs(padded, suppress_tokens=[token for token in UNUSED if token != 310])
    assert ours(padded) == expected
    assert expected[-1] == 310


def test_nan_logits_are_an_error_despite_unused_rows(padded: Path) -> None:
    generator = load(str(padded))
    generator.model.weights["ln_f.bias"][0] = torch.nan
    with pytest.raises((NotFiniteError, RuntimeError), match="not finite"):
        generated_ids(generator, decoding="greedy")
