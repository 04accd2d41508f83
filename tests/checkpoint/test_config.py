"""config.json gives the shape of a GPT-2, or is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import CONFIG, random_model, write_config

from gpt2tg.checkpoint.config import read_shape
from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.checkpoint.weights import read_weights
from gpt2tg.errors import UserError


def test_shape_is_that_of_the_saved_model(model_dir: Path) -> None:
    assert read_shape(model_dir) == ModelShape(
        vocab_size=300,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_inner=128,
        activation="gelu_new",
        epsilon=1e-5,
        scale_attention=True,
        scale_by_layer=False,
        tied=True,
        end_ids=(0,),
    )


def test_every_field_that_changes_the_computation_is_read(tmp_path: Path) -> None:
    random_model(
        n_inner=48,
        activation_function="relu",
        layer_norm_epsilon=1e-3,
        scale_attn_weights=False,
        scale_attn_by_inverse_layer_idx=True,
        tie_word_embeddings=False,
    ).save_pretrained(tmp_path)
    shape = read_shape(tmp_path)
    assert (shape.n_inner, shape.activation, shape.epsilon) == (48, "relu", 1e-3)
    assert (shape.scale_attention, shape.scale_by_layer, shape.tied) == (False, True, False)


def test_config_that_names_the_class_alone_is_a_gpt2(tmp_path: Path) -> None:
    settings = {key: value for key, value in CONFIG.items() if key != "model_type"}
    assert read_shape(write_config(tmp_path, {**settings, "architectures": ["GPT2LMHeadModel"]})).n_layer == 2
    for classes in (["BertModel"], "GPT2LMHeadModel", [None]):
        with pytest.raises(UserError, match="only models of the GPT-2 architecture"):
            read_shape(write_config(tmp_path, {**settings, "architectures": classes}))


def test_config_with_sizes_alone_is_a_gpt2(tmp_path: Path) -> None:
    shape = read_shape(write_config(tmp_path, CONFIG))
    assert (shape.n_inner, shape.activation, shape.epsilon, shape.tied) == (128, "gelu_new", 1e-5, True)


@pytest.mark.parametrize(
    "config",
    [{**CONFIG, "model_type": "llama"}, {"architectures": ["LlamaForCausalLM"], "hidden_size": 32}],
    ids=["by model_type", "by architectures"],
)
def test_another_architecture_is_refused_by_name(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"(?i)is a llama.* GPT-2"):
        read_shape(write_config(tmp_path, config))


def test_config_without_an_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json names no architecture"):
        read_shape(write_config(tmp_path, {"n_embd": 32}))


@pytest.mark.parametrize(
    "content",
    ["", "{", "no json", "[1, 2]", '"gpt2"', "null", "[" * 100_000, '{"n_embd": ' + "9" * 5000 + "}"],
    ids=["empty", "cut", "words", "list", "string", "null", "deep", "endless number"],
)
def test_config_that_is_no_json_object_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(UserError, match=r"config\.json .*JSON"):
        read_shape(write_config(tmp_path, content))


def test_config_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00{}")
    with pytest.raises(UserError, match=r"config\.json"):
        read_shape(tmp_path)


def test_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json is missing"):
        read_shape(tmp_path)


@pytest.mark.parametrize("value", [None, 0, -1, "32", 32.0, 10**12, [32], float("nan")])
@pytest.mark.parametrize("name", ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head"])
def test_size_out_of_bounds_is_refused(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"config\.json: {name} is"):
        read_shape(write_config(tmp_path, {**CONFIG, name: value}))


@pytest.mark.parametrize("name", ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head"])
def test_missing_size_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"config\.json: {name} is"):
        read_shape(write_config(tmp_path, {key: value for key, value in CONFIG.items() if key != name}))


@pytest.mark.parametrize("value", [-4, "128", 10**12, [128]])
def test_inner_width_out_of_bounds_is_refused(checkpoint: Path, value: object) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    write_config(checkpoint, {**config, "n_inner": value})
    with pytest.raises(UserError, match=r"config\.json"):
        read_weights(checkpoint, read_shape(checkpoint))


@pytest.mark.parametrize("value", ["small", [1e-5], None])
def test_epsilon_out_of_bounds_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(UserError, match=r"config\.json: layer_norm_epsilon"):
        read_shape(write_config(tmp_path, {**CONFIG, "layer_norm_epsilon": value}))


def test_width_that_is_no_multiple_of_the_heads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json: width 32 .* 5 heads"):
        read_shape(write_config(tmp_path, {**CONFIG, "n_head": 5}))


@pytest.mark.parametrize("activation", ["swish", "", None, 3, ["gelu"]])
def test_unknown_activation_is_refused(tmp_path: Path, activation: object) -> None:
    with pytest.raises(UserError, match=r"config\.json: activation .*gelu_new"):
        read_shape(write_config(tmp_path, {**CONFIG, "activation_function": activation}))


@pytest.mark.parametrize(
    ("settings", "config", "ends"),
    [
        ({"eos_token_id": 7}, {"eos_token_id": 5}, (7,)),
        ({"eos_token_id": [7, 9]}, {"eos_token_id": 5}, (7, 9)),
        ({"eos_token_id": None}, {"eos_token_id": 5}, (5,)),
        ({}, {"eos_token_id": 5}, (5,)),
        (None, {"eos_token_id": 5}, (5,)),
        (None, {"eos_token_id": [5, 6]}, (5, 6)),
        (None, {"vocab_size": 50257}, (50256,)),
        (None, {}, ()),
        (None, {"eos_token_id": 300}, ()),
        (None, {"eos_token_id": None}, ()),
    ],
    ids=[
        "settings first",
        "several",
        "settings silent",
        "settings empty",
        "config alone",
        "several in config",
        "as GPT-2",
        "GPT-2's is beyond the vocabulary",
        "beyond the vocabulary",
        "none",
    ],
)
def test_end_ids_come_from_generation_config_first(
    tmp_path: Path, settings: dict[str, Any] | None, config: dict[str, Any], ends: tuple[int, ...]
) -> None:
    if settings is not None:
        write_config(tmp_path, settings, "generation_config.json")
    assert read_shape(write_config(tmp_path, {**CONFIG, **config})).end_ids == ends


def test_broken_generation_settings_are_named(tmp_path: Path) -> None:
    write_config(tmp_path, "{", "generation_config.json")
    with pytest.raises(UserError, match=r"generation_config\.json"):
        read_shape(write_config(tmp_path, CONFIG))
