"""A model's name finds its directory; what the directory holds is read whole or refused by name."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import random_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2LMHeadModel

from gpt2tg.checkpoint.config import read_shape
from gpt2tg.checkpoint.find import BUNDLED_DIRECTORY, find_directory
from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.checkpoint.weights import read_weights
from gpt2tg.errors import UserError

# config.json of the model in `model_dir`, as far as it decides what is computed.
CONFIG = {"model_type": "gpt2", "vocab_size": 300, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}


@pytest.fixture
def checkpoint(model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the model's directory to change at will."""
    return shutil.copytree(model_dir, tmp_path / "model")


@pytest.fixture
def shape(model_dir: Path) -> ModelShape:
    return read_shape(model_dir)


@pytest.fixture
def expected(reference: GPT2LMHeadModel) -> dict[str, Tensor]:
    """The weights as transformers read them, by their plain names; the output shares the embedding."""
    state = {name.removeprefix("transformer."): tensor for name, tensor in reference.state_dict().items()}
    del state["lm_head.weight"]
    return state


def write_config(directory: Path, config: Any, name: str = "config.json") -> Path:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
    return directory


def make_models(parent: Path, *names: str) -> None:
    for name in names:
        (parent / name).mkdir(parents=True)
        (parent / name / "config.json").write_text("{}")
        (parent / name / "model.safetensors").touch()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def change_weights(directory: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    file = directory / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file)


def write_pickle(directory: Path, content: Any, zipped: bool = True) -> Path:
    """Replace the weights of a directory by a pytorch_model.bin."""
    for file in directory.glob("model*.safetensors*"):
        file.unlink()
    file = directory / "pytorch_model.bin"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file


def write_shards(directory: Path) -> list[Path]:
    """Replace the weights of a directory by the same weights in several files."""
    model = GPT2LMHeadModel.from_pretrained(directory, local_files_only=True)
    (directory / "model.safetensors").unlink()
    model.save_pretrained(directory, max_shard_size="40KB")
    return sorted(directory.glob("model-*.safetensors"))


# --- find_directory ---


def test_a_model_directory_is_found_as_it_is(model_dir: Path) -> None:
    assert find_directory(str(model_dir)) == model_dir


def test_a_relative_directory_is_found(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model_dir.parent)
    assert find_directory(f"./{model_dir.name}").resolve() == model_dir.resolve()


def test_the_home_directory_may_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_models(tmp_path, "tuned")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert find_directory("~/tuned") == tmp_path / "tuned"


def test_a_directory_here_goes_before_a_hub_model_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_models(tmp_path, "gpt2")
    monkeypatch.chdir(tmp_path)
    assert find_directory("gpt2").resolve() == (tmp_path / "gpt2").resolve()


def test_the_newest_checkpoint_is_the_one_with_the_highest_number(tmp_path: Path) -> None:
    make_models(tmp_path, "checkpoint-10", "checkpoint-9", "checkpoint-8")
    assert find_directory(str(tmp_path)) == tmp_path / "checkpoint-10"


@pytest.mark.parametrize("files", [[], ["config.json"]])
def test_a_checkpoint_without_a_model_is_passed_over(tmp_path: Path, files: list[str]) -> None:
    """One that is just being written, or that a kill cut short, has its config first."""
    make_models(tmp_path, "checkpoint-9")
    (tmp_path / "checkpoint-10").mkdir()
    for name in files:
        (tmp_path / "checkpoint-10" / name).write_text("{}")
    assert find_directory(str(tmp_path)) == tmp_path / "checkpoint-9"


@pytest.mark.parametrize("name", ["checkpoint-best", "checkpoint-11-backup", "old-checkpoint-12", "checkpoint-"])
def test_only_numbered_folders_are_checkpoints(tmp_path: Path, name: str) -> None:
    make_models(tmp_path, "checkpoint-3", name)
    assert find_directory(str(tmp_path)) == tmp_path / "checkpoint-3"


def test_the_final_model_goes_before_the_checkpoints_beside_it(tmp_path: Path) -> None:
    make_models(tmp_path, "run", "run/checkpoint-10")
    assert find_directory(str(tmp_path / "run")) == tmp_path / "run"


def test_one_checkpoint_can_be_named(tmp_path: Path) -> None:
    make_models(tmp_path, "checkpoint-9", "checkpoint-10")
    assert find_directory(str(tmp_path / "checkpoint-9")) == tmp_path / "checkpoint-9"


def test_the_bundled_model_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_directory("gpt2-tiny") == BUNDLED_DIRECTORY


def test_a_checkpoint_that_is_not_there_is_no_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_models(tmp_path, "run/checkpoint-9", "run/checkpoint-10")
    with pytest.raises(UserError, match="run holds checkpoint-9, checkpoint-10"):
        find_directory("run/checkpoint-99")


def test_an_old_config_that_names_only_the_class_is_a_gpt2(tmp_path: Path) -> None:
    settings = {key: value for key, value in CONFIG.items() if key != "model_type"}
    assert read_shape(write_config(tmp_path, {**settings, "architectures": ["GPT2LMHeadModel"]})).n_layer == 2
    for classes in (["BertModel"], "GPT2LMHeadModel", [None]):
        with pytest.raises(UserError, match="only models of the GPT-2 architecture"):
            read_shape(write_config(tmp_path, {**settings, "architectures": classes}))


@pytest.mark.parametrize("option", ["model_name", "model_path"])
def test_a_file_is_no_model(tmp_path: Path, option: str) -> None:
    (tmp_path / "weights.bin").touch()
    with pytest.raises(UserError, match=r"weights\.bin is a file") as caught:
        find_directory(str(tmp_path / "weights.bin"), option)
    assert caught.value.option == option


@pytest.mark.parametrize("option", ["model_name", "model_path"])
@pytest.mark.parametrize("name", ["./x", "a/b/c", "/no/such/model", "~/no such model", "gone/"])
def test_a_path_that_does_not_exist_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, option: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="does not exist") as caught:
        find_directory(name, option)
    assert name in caught.value.message
    assert caught.value.option == option


@pytest.mark.parametrize(
    "name",
    ["my--model", "my..model", "model.git", "model-", "модель", "m" * 97],
    ids=["dashes", "dots", "git", "last dash", "no ascii", "long"],
)
def test_a_name_that_the_hub_does_not_allow_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        find_directory(name, "model_path")
    assert name in caught.value.message
    assert caught.value.option == "model_path"


@pytest.mark.parametrize("name", ["m" * 300, "~nobody-of-that-name/model"], ids=["long", "no such user"])
def test_a_name_that_the_system_does_not_allow_is_refused(name: str) -> None:
    with pytest.raises(UserError) as caught:
        find_directory(name, "model_path")
    assert name in caught.value.message


def test_an_empty_directory_is_said_to_be_empty(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found nothing") as caught:
        find_directory(str(tmp_path), "model_path")
    assert caught.value.option == "model_path"
    assert str(tmp_path) in caught.value.message


def test_unrelated_files_are_listed(tmp_path: Path) -> None:
    for name in ("song.mp3", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"config\.json is missing, found notes\.txt, song\.mp3$") as caught:
        find_directory(str(tmp_path), "model_path")
    assert caught.value.option == "model_path"


def test_a_crowd_of_unrelated_files_is_not_listed_to_the_last(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"photo{number:02}.jpg").touch()
    with pytest.raises(UserError, match=r"photo00\.jpg, .*\.\.\.$") as caught:
        find_directory(str(tmp_path))
    assert "photo99" not in caught.value.message


# --- read_shape ---


def test_the_shape_is_what_the_model_was_made_with(model_dir: Path) -> None:
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


def test_every_setting_that_changes_the_computation_is_read(tmp_path: Path) -> None:
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


def test_the_sizes_alone_mean_gpt2_as_openai_made_it(tmp_path: Path) -> None:
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


def test_a_config_that_names_no_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown"):
        read_shape(write_config(tmp_path, {"n_embd": 32}))


@pytest.mark.parametrize(
    "content",
    ["", "{", "no json", "[1, 2]", '"gpt2"', "null", "[" * 100_000, '{"n_embd": ' + "9" * 5000 + "}"],
    ids=["empty", "cut", "words", "list", "string", "null", "deep", "endless number"],
)
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(UserError, match=r"config\.json .*JSON"):
        read_shape(write_config(tmp_path, content))


def test_a_config_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00{}")
    with pytest.raises(UserError, match=r"config\.json"):
        read_shape(tmp_path)


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json is missing"):
        read_shape(tmp_path)


@pytest.mark.parametrize("value", [None, 0, -1, "32", 32.0, 10**12, [32], float("nan")])
@pytest.mark.parametrize("name", ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head"])
def test_a_size_out_of_reason_is_refused(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"config\.json: {name} is"):
        read_shape(write_config(tmp_path, {**CONFIG, name: value}))


@pytest.mark.parametrize("name", ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head"])
def test_a_missing_size_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"config\.json: {name} is"):
        read_shape(write_config(tmp_path, {key: value for key, value in CONFIG.items() if key != name}))


@pytest.mark.parametrize("value", [-4, "128", 10**12, [128]])
def test_an_inner_width_out_of_reason_is_refused(checkpoint: Path, value: object) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    write_config(checkpoint, {**config, "n_inner": value})
    with pytest.raises(UserError, match=r"config\.json"):
        read_weights(checkpoint, read_shape(checkpoint))


@pytest.mark.parametrize("value", ["small", [1e-5], None])
def test_an_epsilon_that_is_no_number_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(UserError, match=r"config\.json: layer_norm_epsilon"):
        read_shape(write_config(tmp_path, {**CONFIG, "layer_norm_epsilon": value}))


def test_a_width_that_the_heads_cannot_share_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json: width 32 .* 5 heads"):
        read_shape(write_config(tmp_path, {**CONFIG, "n_head": 5}))


@pytest.mark.parametrize("activation", ["swish", "", None, 3, ["gelu"]])
def test_an_unknown_activation_is_refused(tmp_path: Path, activation: object) -> None:
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
def test_the_ids_that_end_a_text(
    tmp_path: Path, settings: dict[str, Any] | None, config: dict[str, Any], ends: tuple[int, ...]
) -> None:
    if settings is not None:
        write_config(tmp_path, settings, "generation_config.json")
    assert read_shape(write_config(tmp_path, {**CONFIG, **config})).end_ids == ends


def test_broken_generation_settings_are_named(tmp_path: Path) -> None:
    write_config(tmp_path, "{", "generation_config.json")
    with pytest.raises(UserError, match=r"generation_config\.json"):
        read_shape(write_config(tmp_path, CONFIG))


# --- read_weights: every way they are stored ---


def test_weights_are_those_that_transformers_saved(
    model_dir: Path, shape: ModelShape, expected: dict[str, Tensor]
) -> None:
    assert_same(read_weights(model_dir, shape), expected)


def test_names_without_the_prefix_mean_the_same(
    checkpoint: Path, shape: ModelShape, expected: dict[str, Tensor]
) -> None:
    """As in the files that OpenAI's models have on the hub."""
    save_file(expected, checkpoint / "model.safetensors")
    assert_same(read_weights(checkpoint, shape), expected)


def test_weights_in_several_files_are_put_together(
    checkpoint: Path, shape: ModelShape, expected: dict[str, Tensor]
) -> None:
    assert len(write_shards(checkpoint)) > 1
    assert_same(read_weights(checkpoint, shape), expected)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_of_weights_gives_the_same_tensors(
    checkpoint: Path, shape: ModelShape, expected: dict[str, Tensor], reference: GPT2LMHeadModel, zipped: bool
) -> None:
    write_pickle(checkpoint, reference.state_dict(), zipped)
    assert_same(read_weights(checkpoint, shape), expected)


def test_safetensors_go_before_a_pickle(
    checkpoint: Path, shape: ModelShape, expected: dict[str, Tensor], reference: GPT2LMHeadModel
) -> None:
    torch.save({name: tensor * 2 for name, tensor in reference.state_dict().items()}, checkpoint / "pytorch_model.bin")
    assert_same(read_weights(checkpoint, shape), expected)


def test_safetensors_in_several_files_go_before_a_pickle(
    checkpoint: Path, shape: ModelShape, expected: dict[str, Tensor]
) -> None:
    write_shards(checkpoint)
    (checkpoint / "pytorch_model.bin").write_bytes(b"never read")
    assert_same(read_weights(checkpoint, shape), expected)


def test_an_output_of_its_own_is_read_too(tmp_path: Path) -> None:
    model = random_model(tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    found = read_weights(tmp_path, read_shape(tmp_path))
    assert torch.equal(found["lm_head.weight"], model.lm_head.weight)
    assert not torch.equal(found["lm_head.weight"], found["wte.weight"])


def test_weights_of_16_bits_keep_their_values(checkpoint: Path, shape: ModelShape, expected: dict[str, Tensor]) -> None:
    halves = {name: tensor.half() for name, tensor in expected.items()}
    save_file(halves, checkpoint / "model.safetensors")
    assert_same(read_weights(checkpoint, shape), halves)


def test_the_buffers_in_old_files_are_ignored(checkpoint: Path, shape: ModelShape, expected: dict[str, Tensor]) -> None:
    def add_buffers(tensors: dict[str, Tensor]) -> None:
        for layer in range(2):
            tensors[f"h.{layer}.attn.bias"] = torch.ones(64, 64).tril().view(1, 1, 64, 64)
            tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(float("-inf"))

    change_weights(checkpoint, add_buffers)
    assert_same(read_weights(checkpoint, shape), expected)


# --- read_weights: what is refused ---


def assert_refused(directory: Path, shape: ModelShape, words: str) -> None:
    """Refused in one line that a terminal shows as it is."""
    with pytest.raises(UserError, match=words) as caught:
        read_weights(directory, shape)
    assert caught.value.message.isprintable()


def test_a_directory_without_weights_is_refused(checkpoint: Path, shape: ModelShape) -> None:
    (checkpoint / "model.safetensors").unlink()
    assert_refused(checkpoint, shape, r"holds no weights: expected model\.safetensors")


@pytest.mark.parametrize("kept", [0, 4, 200, -1])
def test_cut_safetensors_are_refused(checkpoint: Path, shape: ModelShape, kept: int) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    assert_refused(checkpoint, shape, r"model\.safetensors is cut or broken")


def test_garbage_in_place_of_safetensors_is_refused(checkpoint: Path, shape: ModelShape) -> None:
    (checkpoint / "model.safetensors").write_bytes(bytes(range(256)) * 8)
    assert_refused(checkpoint, shape, r"model\.safetensors is cut or broken")


@pytest.mark.parametrize(
    "garbage",
    [b"", b"\0" * 64, bytes(range(256)) * 8, b"PK\x03\x04 no zip", b"<html>404</html>", b"."],
    ids=["empty", "zeros", "bytes", "a zip's first bytes", "html", "a pickle's last byte"],
)
def test_garbage_in_place_of_a_pickle_is_refused(checkpoint: Path, shape: ModelShape, garbage: bytes) -> None:
    write_pickle(checkpoint, {}).write_bytes(garbage)
    assert_refused(checkpoint, shape, r"pytorch_model\.bin")


@pytest.mark.parametrize("kept", [0.0001, 0.001, 0.003, 0.01, 0.02, 0.3, 0.999])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_cut_pickle_is_refused(
    checkpoint: Path, shape: ModelShape, expected: dict[str, Tensor], zipped: bool, kept: float
) -> None:
    file = write_pickle(checkpoint, expected, zipped)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    assert_refused(checkpoint, shape, r"pytorch_model\.bin")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_cut_at_any_byte_of_its_head_is_refused(
    tmp_path: Path, shape: ModelShape, expected: dict[str, Tensor], zipped: bool
) -> None:
    """Where a download breaks off decides what torch stumbles over."""
    file = write_pickle(tmp_path, {"wte.weight": torch.ones(2, 2)}, zipped)
    content = file.read_bytes()
    for size in range(0, len(content), 7):
        file.write_bytes(content[:size])
        assert_refused(tmp_path, shape, r"pytorch_model\.bin")


@pytest.mark.parametrize("name", ["wpe.weight", "h.1.mlp.c_proj.bias", "ln_f.bias"])
def test_a_missing_tensor_is_named(checkpoint: Path, shape: ModelShape, name: str) -> None:
    change_weights(checkpoint, lambda tensors: tensors.pop(f"transformer.{name}"))
    assert_refused(checkpoint, shape, f"lacks {name}")


def test_a_missing_layer_is_refused(model_dir: Path, tmp_path: Path) -> None:
    """A config of three layers beside the weights of two."""
    write_config(tmp_path, {**CONFIG, "n_layer": 3})
    shutil.copy(model_dir / "model.safetensors", tmp_path)
    assert_refused(tmp_path, read_shape(tmp_path), r"lacks h\.2\.")


def test_a_missing_output_is_refused(checkpoint: Path) -> None:
    write_config(checkpoint, {**CONFIG, "tie_word_embeddings": False})
    assert_refused(checkpoint, read_shape(checkpoint), r"lacks lm_head\.weight")


def test_a_tensor_of_another_shape_is_refused_with_both_shapes(checkpoint: Path, shape: ModelShape) -> None:
    change_weights(checkpoint, lambda tensors: tensors.update({"transformer.wte.weight": torch.zeros(299, 32)}))
    assert_refused(checkpoint, shape, r"wte\.weight .*\(299, 32\).*\(300, 32\)")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_number_that_is_not_finite_is_refused(
    checkpoint: Path, shape: ModelShape, value: float, dtype: torch.dtype
) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()})
        tensors["transformer.h.1.attn.c_attn.weight"][17, 3] = value

    change_weights(checkpoint, spoil)
    assert_refused(checkpoint, shape, r"h\.1\.attn\.c_attn\.weight holds numbers that are not finite")


def test_a_pickle_with_nan_is_refused(checkpoint: Path, shape: ModelShape, expected: dict[str, Tensor]) -> None:
    write_pickle(checkpoint, {**expected, "ln_f.bias": torch.full((32,), float("nan"))})
    assert_refused(checkpoint, shape, r"ln_f\.bias holds numbers that are not finite")


def test_a_missing_shard_is_named(checkpoint: Path, shape: ModelShape) -> None:
    shard = write_shards(checkpoint)[1]
    shard.unlink()
    assert_refused(checkpoint, shape, f"lacks {shard.name}")


def test_a_broken_shard_is_named(checkpoint: Path, shape: ModelShape) -> None:
    shard = write_shards(checkpoint)[1]
    shard.write_bytes(shard.read_bytes()[:100])
    assert_refused(checkpoint, shape, f"{shard.name} is cut or broken")


@pytest.mark.parametrize(
    "index",
    [
        "{",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"wte.weight": 1}}',
        '{"weight_map": {"wte.weight": ["a.safetensors"]}}',
    ],
)
def test_a_broken_index_is_refused(tmp_path: Path, shape: ModelShape, index: str) -> None:
    write_config(tmp_path, index, "model.safetensors.index.json")
    assert_refused(tmp_path, shape, r"model\.safetensors\.index\.json")


@pytest.mark.parametrize("absolute", [False, True], ids=["relative", "absolute"])
def test_an_index_cannot_reach_outside_its_directory(
    checkpoint: Path, tmp_path: Path, shape: ModelShape, absolute: bool
) -> None:
    """The weights there are whole: only where they lie speaks against them."""
    (checkpoint / "model.safetensors").rename(tmp_path / "outside.safetensors")
    target = str(tmp_path / "outside.safetensors") if absolute else "../outside.safetensors"
    index = {"weight_map": {name: target for name, _ in shape.tensors()}}
    write_config(checkpoint, index, "model.safetensors.index.json")
    assert_refused(checkpoint, shape, r"outside\.safetensors")


@pytest.mark.parametrize(
    "content",
    [[torch.ones(2)], torch.ones(2), {"step": 3}, {"layers": {"wte.weight": torch.ones(2)}}, {1: torch.ones(2)}],
    ids=["list", "tensor", "number in a dict", "dict in a dict", "numbers as names"],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_of_anything_but_named_weights_is_refused(
    checkpoint: Path, shape: ModelShape, content: object, zipped: bool
) -> None:
    write_pickle(checkpoint, content, zipped)
    assert_refused(checkpoint, shape, r"pytorch_model\.bin holds something else than named weights")


@pytest.mark.parametrize(
    "convert",
    [
        lambda tensor: tensor.to_sparse(),
        lambda tensor: tensor.to("meta"),
        lambda tensor: tensor.to(torch.float8_e4m3fn),
        lambda tensor: tensor.to(torch.int8),
    ],
    ids=["sparse", "without data", "8-bit floats", "integers"],
)
def test_tensors_that_gpt2_cannot_compute_with_are_refused(
    checkpoint: Path, shape: ModelShape, expected: dict[str, Tensor], convert: Callable[[Tensor], Tensor]
) -> None:
    write_pickle(checkpoint, {**expected, "wte.weight": convert(expected["wte.weight"])})
    with pytest.raises(UserError, match=r"wte\.weight|pytorch_model\.bin"):
        read_weights(checkpoint, shape)


class Attack:
    """Makes a directory when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle"])
def test_code_in_a_pickle_is_not_run(
    checkpoint: Path, tmp_path: Path, shape: ModelShape, expected: dict[str, Tensor], form: str
) -> None:
    content = {**expected, "wte.weight": Attack(tmp_path / "owned")}
    file = write_pickle(checkpoint, content, zipped=form == "zip")
    if form == "plain pickle":
        file.write_bytes(pickle.dumps(Attack(tmp_path / "owned"), protocol=2))
    assert_refused(checkpoint, shape, r"pytorch_model\.bin is refused.*nothing in it was run")
    assert not (tmp_path / "owned").exists()


def test_a_whole_model_in_a_pickle_is_refused(checkpoint: Path, shape: ModelShape) -> None:
    """What `torch.save(model)` leaves: more than weights, though nobody meant harm."""
    write_pickle(checkpoint, torch.nn.Linear(2, 2))
    assert_refused(checkpoint, shape, r"pytorch_model\.bin is refused")
