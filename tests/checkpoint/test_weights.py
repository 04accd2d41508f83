"""Weights are read completely, however they are stored, or refused by name."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CONFIG, random_model, write_config
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2LMHeadModel

from gpt2tg.checkpoint.config import read_shape
from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.checkpoint.weights import read_weights
from gpt2tg.errors import UserError


@pytest.fixture
def expected(reference: GPT2LMHeadModel) -> dict[str, Tensor]:
    """The weights as transformers reads them, by their plain names; the head is tied to the embedding."""
    state = {name.removeprefix("transformer."): tensor for name, tensor in reference.state_dict().items()}
    del state["lm_head.weight"]
    return state


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


# --- read_weights: every way they are stored ---


def test_weights_are_those_that_transformers_saved(
    model_dir: Path, shape: ModelShape, expected: dict[str, Tensor]
) -> None:
    assert_same(read_weights(model_dir, shape), expected)


def test_names_without_a_prefix_are_read(checkpoint: Path, shape: ModelShape, expected: dict[str, Tensor]) -> None:
    """As in OpenAI's files on the hub."""
    save_file(expected, checkpoint / "model.safetensors")
    assert_same(read_weights(checkpoint, shape), expected)


def test_sharded_weights_are_read(checkpoint: Path, shape: ModelShape, expected: dict[str, Tensor]) -> None:
    assert len(write_shards(checkpoint)) > 1
    assert_same(read_weights(checkpoint, shape), expected)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pickled_weights_are_read(
    checkpoint: Path, shape: ModelShape, expected: dict[str, Tensor], reference: GPT2LMHeadModel, zipped: bool
) -> None:
    write_pickle(checkpoint, reference.state_dict(), zipped)
    assert_same(read_weights(checkpoint, shape), expected)


def test_safetensors_precede_a_pickle(
    checkpoint: Path, shape: ModelShape, expected: dict[str, Tensor], reference: GPT2LMHeadModel
) -> None:
    torch.save({name: tensor * 2 for name, tensor in reference.state_dict().items()}, checkpoint / "pytorch_model.bin")
    assert_same(read_weights(checkpoint, shape), expected)


def test_sharded_safetensors_precede_a_pickle(checkpoint: Path, shape: ModelShape, expected: dict[str, Tensor]) -> None:
    write_shards(checkpoint)
    (checkpoint / "pytorch_model.bin").write_bytes(b"never read")
    assert_same(read_weights(checkpoint, shape), expected)


def test_untied_head_is_read(tmp_path: Path) -> None:
    model = random_model(tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    found = read_weights(tmp_path, read_shape(tmp_path))
    assert torch.equal(found["lm_head.weight"], model.lm_head.weight)
    assert not torch.equal(found["lm_head.weight"], found["wte.weight"])


def test_weights_of_16_bits_keep_their_values(checkpoint: Path, shape: ModelShape, expected: dict[str, Tensor]) -> None:
    halves = {name: tensor.half() for name, tensor in expected.items()}
    save_file(halves, checkpoint / "model.safetensors")
    assert_same(read_weights(checkpoint, shape), halves)


def test_buffers_in_old_files_are_ignored(checkpoint: Path, shape: ModelShape, expected: dict[str, Tensor]) -> None:
    def add_buffers(tensors: dict[str, Tensor]) -> None:
        for layer in range(2):
            tensors[f"h.{layer}.attn.bias"] = torch.ones(64, 64).tril().view(1, 1, 64, 64)
            tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(float("-inf"))

    change_weights(checkpoint, add_buffers)
    assert_same(read_weights(checkpoint, shape), expected)


# --- read_weights: what is refused ---


def assert_refused(directory: Path, shape: ModelShape, words: str) -> None:
    """Assert that reading is refused in one printable line."""
    with pytest.raises(UserError, match=words) as caught:
        read_weights(directory, shape)
    assert caught.value.message.isprintable()


def test_directory_without_weights_is_refused(checkpoint: Path, shape: ModelShape) -> None:
    (checkpoint / "model.safetensors").unlink()
    assert_refused(checkpoint, shape, r"holds no weights: expected model\.safetensors")


@pytest.mark.parametrize("kept", [0, 4, 200, -1])
def test_truncated_safetensors_are_refused(checkpoint: Path, shape: ModelShape, kept: int) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    assert_refused(checkpoint, shape, r"model\.safetensors is truncated or broken")


def test_garbage_in_place_of_safetensors_is_refused(checkpoint: Path, shape: ModelShape) -> None:
    (checkpoint / "model.safetensors").write_bytes(bytes(range(256)) * 8)
    assert_refused(checkpoint, shape, r"model\.safetensors is truncated or broken")


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
def test_truncated_pickle_is_refused(
    checkpoint: Path, shape: ModelShape, expected: dict[str, Tensor], zipped: bool, kept: float
) -> None:
    file = write_pickle(checkpoint, expected, zipped)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    assert_refused(checkpoint, shape, r"pytorch_model\.bin")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pickle_truncated_in_its_head_is_refused(
    tmp_path: Path, shape: ModelShape, expected: dict[str, Tensor], zipped: bool
) -> None:
    """The error of torch depends on where a download broke off."""
    file = write_pickle(tmp_path, {"wte.weight": torch.ones(2, 2)}, zipped)
    content = file.read_bytes()
    for size in range(0, len(content), 7):
        file.write_bytes(content[:size])
        assert_refused(tmp_path, shape, r"pytorch_model\.bin")


@pytest.mark.parametrize("name", ["wpe.weight", "h.1.mlp.c_proj.bias", "ln_f.bias"])
def test_missing_tensor_is_named(checkpoint: Path, shape: ModelShape, name: str) -> None:
    change_weights(checkpoint, lambda tensors: tensors.pop(f"transformer.{name}"))
    assert_refused(checkpoint, shape, f"{name} is missing")


def test_missing_layer_is_refused(model_dir: Path, tmp_path: Path) -> None:
    """The config has three layers, the weights two."""
    write_config(tmp_path, {**CONFIG, "n_layer": 3})
    shutil.copy(model_dir / "model.safetensors", tmp_path)
    assert_refused(tmp_path, read_shape(tmp_path), r"h\.2\.\S+ is missing")


def test_missing_head_is_refused(checkpoint: Path) -> None:
    write_config(checkpoint, {**CONFIG, "tie_word_embeddings": False})
    assert_refused(checkpoint, read_shape(checkpoint), r"lm_head\.weight is missing")


def test_tensor_of_another_shape_is_refused(checkpoint: Path, shape: ModelShape) -> None:
    change_weights(checkpoint, lambda tensors: tensors.update({"transformer.wte.weight": torch.zeros(299, 32)}))
    assert_refused(checkpoint, shape, r"wte\.weight .*\(299, 32\).*\(300, 32\)")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_number_that_is_not_finite_is_refused(
    checkpoint: Path, shape: ModelShape, value: float, dtype: torch.dtype
) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()})
        tensors["transformer.h.1.attn.c_attn.weight"][17, 3] = value

    change_weights(checkpoint, spoil)
    assert_refused(checkpoint, shape, r"h\.1\.attn\.c_attn\.weight holds numbers that are not finite")


def test_pickle_with_nan_is_refused(checkpoint: Path, shape: ModelShape, expected: dict[str, Tensor]) -> None:
    write_pickle(checkpoint, {**expected, "ln_f.bias": torch.full((32,), float("nan"))})
    assert_refused(checkpoint, shape, r"ln_f\.bias holds numbers that are not finite")


def test_missing_shard_is_named(checkpoint: Path, shape: ModelShape) -> None:
    shard = write_shards(checkpoint)[1]
    shard.unlink()
    assert_refused(checkpoint, shape, f"{shard.name} is missing")


def test_broken_shard_is_named(checkpoint: Path, shape: ModelShape) -> None:
    shard = write_shards(checkpoint)[1]
    shard.write_bytes(shard.read_bytes()[:100])
    assert_refused(checkpoint, shape, f"{shard.name} is truncated or broken")


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
def test_broken_index_is_refused(tmp_path: Path, shape: ModelShape, index: str) -> None:
    write_config(tmp_path, index, "model.safetensors.index.json")
    assert_refused(tmp_path, shape, r"model\.safetensors\.index\.json")


@pytest.mark.parametrize("absolute", [False, True], ids=["relative", "absolute"])
def test_index_cannot_lead_outside_its_directory(
    checkpoint: Path, tmp_path: Path, shape: ModelShape, absolute: bool
) -> None:
    """The weights outside are intact, so that their place alone is the reason."""
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
def test_pickle_of_other_objects_is_refused(checkpoint: Path, shape: ModelShape, content: object, zipped: bool) -> None:
    write_pickle(checkpoint, content, zipped)
    assert_refused(checkpoint, shape, r"pytorch_model\.bin holds no named weights")


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
    """Create a directory when unpickled."""

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


def test_pickled_model_object_is_refused(checkpoint: Path, shape: ModelShape) -> None:
    """As `torch.save(model)` writes it: it holds more than weights, but no malicious code."""
    write_pickle(checkpoint, torch.nn.Linear(2, 2))
    assert_refused(checkpoint, shape, r"pytorch_model\.bin is refused")
