"""Matrices are packed from files in fp32 that hold them completely; all other files are left to the loader."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import kernels_here, random_model
from preloading import PRECISIONS, assert_same, built, needs_linux, numbers, preloaded, uneven_model
from safetensors.torch import load_file, save_file

from gpt2tg.checkpoint.checkpoint import read_checkpoint
from gpt2tg.checkpoint.find import BUNDLED_DIRECTORY
from gpt2tg.checkpoint.weights import stream_weights
from gpt2tg.engine.cpu.weight_layout import packed_bytes
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import load

pytestmark = needs_linux


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def directory(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return uneven_model(tmp_path / "model", tied=request.param)


def test_tensor_stored_under_two_names_is_not_packed(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    name = "h.1.attn.c_attn.weight"
    for difference in (0, 1):
        weights[name] = weights[f"transformer.{name}"] + difference
        save_file(weights, directory / "model.safetensors", {"format": "pt"})
        found = preloaded(directory)
        assert found.packed_bytes == 0
        if not difference:
            assert_same(built(directory, "fp32", found), built(directory, "fp32", None))
    with pytest.raises(UserError, match=f"{name} is stored twice with different values"):
        built(directory, "fp32", found)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "pretrained_model."])
def test_tensors_with_a_prefix_are_packed_too(directory: Path, prefix: str) -> None:
    expected = built(directory, "fp32", None)
    weights = {f"{prefix}{name}": tensor for name, tensor in load_file(directory / "model.safetensors").items()}
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    found = preloaded(directory)
    assert found.names == {name for name, *_ in read_checkpoint(directory).shape.matrices()}
    assert_same(built(directory, "fp32", found), expected)


@pytest.mark.parametrize("difference", [0, 1], ids=["equal", "another head"])
def test_head_beside_a_tied_embedding_is_used_if_it_differs(tmp_path: Path, difference: int) -> None:
    random_model(n_embd=20, n_head=2).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights["transformer.wte.weight"] + difference
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    found = preloaded(tmp_path)
    assert "wte.weight" in found.names
    model = built(tmp_path, "fp32", found)
    assert model.shape.tied is not bool(difference)
    expected = weights["transformer.wte.weight"] + difference
    assert torch.equal(model.head.columns(torch.arange(300)), expected)


def test_tied_embedding_stored_as_the_head_is_packed(tmp_path: Path) -> None:
    random_model(n_embd=20, n_head=2).save_pretrained(tmp_path)
    expected = built(tmp_path, "fp32", None)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("transformer.wte.weight")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    found = preloaded(tmp_path)
    assert "wte.weight" in found.names
    assert_same(built(tmp_path, "fp32", found), expected)


def rewritten(directory: Path, content: bytes) -> Path:
    (directory / "model.safetensors").write_bytes(content)
    return directory


def with_header(directory: Path, change: dict[str, object]) -> Path:
    """Change the header's entry of one matrix."""
    content = (directory / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["transformer.h.1.mlp.c_fc.weight"].update(change)
    written = json.dumps(header).encode()
    written += b" " * (-len(written) % 8)  # keeps the data aligned
    return rewritten(directory, len(written).to_bytes(8, "little") + written + content[end:])


def test_other_formats_get_memory_without_packed_matrices(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    halves = {name: tensor.bfloat16() for name, tensor in weights.items()}
    save_file(halves, directory / "model.safetensors", {"format": "pt"})
    for _ in range(2):
        expected = built(directory, "fp32", None)
        found = preloaded(directory)
        assert (found.packed_bytes, found.names) == (0, frozenset())
        assert_same(built(directory, "fp32", found), expected)
        (directory / "model.safetensors").unlink(missing_ok=True)
        torch.save(weights, directory / "pytorch_model.bin")


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "F16"}, {"dtype": None}, {"shape": [80, 20]}, {"shape": None}, {"data_offsets": [0, 4]},
        {"data_offsets": [-6400, 0]}, {"data_offsets": [10**9, 10**9 + 6400]}, {"data_offsets": [1, 6401]},
        {"data_offsets": ["0", "6400"]}, {"data_offsets": [0]}, {"data_offsets": 7}, {"data_offsets": [0.5, 6400.5]},
        {"data_offsets": [0.0, 6400.0]}, {"data_offsets": [False, 6400]},
    ],
    ids=str,
)  # fmt: skip
def test_nothing_outside_the_file_is_read(directory: Path, change: dict[str, object]) -> None:
    assert preloaded(with_header(directory, change)).packed_bytes == 0


@pytest.mark.parametrize(
    "content",
    [b"", b"1234567", b"\xff" * 64, (8).to_bytes(8, "little") + b"[[1], 2]", b"\2" + bytes(7) + b"{}"],
    ids=repr,
)
def test_broken_file_is_ignored(directory: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    assert preloaded(rewritten(directory, content)).packed_bytes == 0
    nested = b"[" * 100_000
    assert preloaded(rewritten(directory, len(nested).to_bytes(8, "little") + nested)).packed_bytes == 0
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["wte", "h.1.mlp.c_proj"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_weight_that_is_not_finite_is_not_packed(directory: Path, precision: str, name: str, bad: float) -> None:
    weights = load_file(directory / "model.safetensors")
    weights[f"transformer.{name}.weight"][-1, -1] = bad
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    found = preloaded(directory, precision)
    assert f"{name}.weight" not in found.names
    with pytest.raises(UserError, match=f"{name}.weight holds numbers that are not finite"):
        built(directory, precision, found)


def test_weights_known_to_be_finite_are_not_checked_again(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    weights["transformer.wte.weight"][0, 0] = torch.nan
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    known = {"wte.weight"}
    assert dict(stream_weights(read_checkpoint(directory), known))["wte.weight"].isnan().any()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_memory_is_as_large_as_the_packed_matrices(precision: str) -> None:
    model = load(str(BUNDLED_DIRECTORY), "cpu", precision=precision).model
    asked = packed_bytes(model.shape, precision, kernels_here())
    held = sum(panels.nbytes + (0 if scale is None else scale.nbytes) for panels, scale in numbers(model).values())
    assert held <= asked <= 1.01 * held
