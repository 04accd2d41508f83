"""GGUF files, read back with llama.cpp's own package. What they hold is compared with transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from conftest import random_model
from gguf import GGUFReader, dequantize
from transformers import GPT2LMHeadModel

from gpt2tg.checkpoint.checkpoint import read_checkpoint
from gpt2tg.checkpoint.tokenizer_loading import load_tokenizer
from gpt2tg.checkpoint.weights import stream_weights
from gpt2tg.errors import UserError
from gpt2tg.export.gguf_file import write_gguf
from gpt2tg.export.source import Source

# The error of a number: fp16 keeps 11 bits; Q8_0 has 127 steps below the largest of 32 numbers, which it keeps in fp16.
LARGEST_ERRORS = {"fp32": 0, "fp16": 2**-11, "int8": 1 / 254 + 2**-11}


def written(model: Path, directory: Path, precision: str = "fp16") -> GGUFReader:
    checkpoint = read_checkpoint(model)
    shape = checkpoint.shape
    tokenizer = load_tokenizer(model, shape.vocab_size, shape.end_ids)
    write_gguf(directory, Source(checkpoint, stream_weights(checkpoint), tokenizer, lambda _: None), precision)
    (file,) = directory.glob("*.gguf")
    return GGUFReader(file)


def tensors(reader: GGUFReader) -> dict[str, numpy.ndarray]:
    return {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}


def field(reader: GGUFReader, name: str) -> Any:
    return reader.fields[name].contents()


def change(directory: Path, name: str, **values: object) -> None:
    path = directory / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_tensors_are_those_of_transformers(
    model_dir: Path, tmp_path: Path, reference: GPT2LMHeadModel, precision: str
) -> None:
    found = tensors(written(model_dir, tmp_path, precision))
    layer = reference.transformer.h[1]
    expected = {
        "token_embd.weight": reference.transformer.wte.weight,
        "blk.1.attn_qkv.weight": layer.attn.c_attn.weight.T,
        "blk.1.attn_output.weight": layer.attn.c_proj.weight.T,
        "blk.1.ffn_up.weight": layer.mlp.c_fc.weight.T,
        "blk.1.ffn_down.weight": layer.mlp.c_proj.weight.T,
    }
    for name, weight in expected.items():
        blocks = weight.detach().reshape(-1, 32)
        error = numpy.abs(found[name] - weight.detach().numpy()).reshape(-1, 32).max(axis=1)
        allowed = LARGEST_ERRORS[precision] * blocks.abs().amax(dim=1).numpy()
        assert (error <= allowed * 1.01).all(), name
    exact = {
        "position_embd.weight": reference.transformer.wpe.weight,
        "blk.1.attn_norm.weight": layer.ln_1.weight,
        "blk.1.ffn_norm.bias": layer.ln_2.bias,
        "blk.1.attn_qkv.bias": layer.attn.c_attn.bias,
        "blk.1.ffn_down.bias": layer.mlp.c_proj.bias,
        "output_norm.weight": reference.transformer.ln_f.weight,
    }
    for name, weight in exact.items():
        assert (found[name] == weight.detach().numpy()).all(), name
    assert "output.weight" not in found, "it is tied"
    assert len(found) == 2 * 12 + 4


def test_settings_and_tokens_are_those_of_the_model(model_dir: Path, tmp_path: Path) -> None:
    reader = written(model_dir, tmp_path)
    stored = json.loads((model_dir / "tokenizer.json").read_text())
    vocabulary = sorted(stored["model"]["vocab"], key=stored["model"]["vocab"].get)
    assert field(reader, "tokenizer.ggml.tokens") == vocabulary
    assert field(reader, "tokenizer.ggml.merges") == [" ".join(pair) for pair in stored["model"]["merges"]]
    assert field(reader, "tokenizer.ggml.token_type") == [3] + [1] * 299  # <|endoftext|> is a control token
    expected = {"context_length": 64, "embedding_length": 32, "block_count": 2, "feed_forward_length": 128}
    expected |= {"attention.head_count": 4, "attention.layer_norm_epsilon": pytest.approx(1e-5)}
    assert {name: field(reader, f"gpt2.{name}") for name in expected} == expected
    names = ("model", "pre", "eos_token_id", "bos_token_id", "add_bos_token")
    assert [field(reader, f"tokenizer.ggml.{name}") for name in names] == ["gpt2", "gpt-2", 0, 0, False]


def test_rows_without_a_token_are_left_out(tmp_path: Path, model_dir: Path) -> None:
    """Also in front of an end-of-text id: that one gets a smaller id in the file, and a name if it has none."""
    checkpoint = tmp_path / "model"
    model = random_model(vocab_size=320, tie_word_embeddings=False, eos_token_id=310)
    model.save_pretrained(checkpoint)
    stored = json.loads((model_dir / "tokenizer.json").read_text())
    added = {"id": 300, "content": "<|user|>", "special": False}
    added |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    stored["added_tokens"].append(added)
    (checkpoint / "tokenizer.json").write_text(json.dumps(stored))
    (checkpoint / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "out").mkdir()
    reader = written(checkpoint, tmp_path / "out", "fp32")
    found = tensors(reader)
    assert field(reader, "tokenizer.ggml.tokens")[300:] == ["<|user|>", "<|310|>"]
    assert field(reader, "tokenizer.ggml.token_type")[299:] == [1, 4, 3]
    assert field(reader, "tokenizer.ggml.eos_token_id") == 301
    assert field(reader, "tokenizer.chat_template") == "{{ messages }}"
    kept = [*range(301), 310]
    assert (found["token_embd.weight"] == model.transformer.wte.weight[kept].detach().numpy()).all()
    assert (found["output.weight"] == model.lm_head.weight[kept].detach().numpy()).all()


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"activation_function": "relu"}, "activation relu"),
        ("config.json", {"scale_attn_by_inverse_layer_idx": True}, "scales attention"),
        ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}, r"changes texts .* \(Lowercase\)"),
        ("tokenizer.json", {"pre_tokenizer": {"type": "Whitespace"}}, "no byte-level"),
        ("tokenizer_config.json", {"add_prefix_space": True, "tokenizer_class": "GPT2Tokenizer"}, "puts a space"),
    ],
    ids=str,
)
def test_what_llama_cpp_computes_otherwise_is_refused(
    checkpoint: Path, tmp_path: Path, file: str, changes: dict, message: str
) -> None:
    change(checkpoint, file, **changes)
    with pytest.raises(UserError, match=message):
        written(checkpoint, tmp_path)


def test_values_too_large_for_fp16_are_refused(tmp_path: Path, model_dir: Path) -> None:
    model = random_model()
    model.transformer.h[0].mlp.c_fc.weight.data[3, 5] = 1e5
    model.save_pretrained(tmp_path / "model")
    shutil.copy(model_dir / "tokenizer.json", tmp_path / "model")
    with pytest.raises(UserError, match=r"fp16 cannot hold the values of h\.0\.mlp\.c_fc\.weight: use fp32"):
        written(tmp_path / "model", tmp_path)
    assert torch.isfinite(model.transformer.h[0].mlp.c_fc.weight).all()
