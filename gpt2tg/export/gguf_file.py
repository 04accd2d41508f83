"""Write a model as a GGUF file, which llama.cpp reads: its weights, its tokenizer, and how texts end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from gpt2tg.checkpoint.checkpoint import Checkpoint
from gpt2tg.checkpoint.saving import in_type
from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.checkpoint.tensor_names import EMBEDDING, HEAD
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.checkpoint.tokenizer_pipeline import pipeline
from gpt2tg.errors import UserError
from gpt2tg.export.source import Source

# Our names of the precisions, and those of llama.cpp.
KINDS = {"fp32": Kind.F32, "fp16": Kind.F16, "int8": Kind.Q8_0}
FILE_TYPES = {
    "fp32": gguf.LlamaFileType.ALL_F32,
    "fp16": gguf.LlamaFileType.MOSTLY_F16,
    "int8": gguf.LlamaFileType.MOSTLY_Q8_0,
}

# llama.cpp's names of our tensors.
OUTER = {EMBEDDING: "token_embd.weight", "wpe.weight": "position_embd.weight", HEAD: "output.weight"}
OUTER |= {f"ln_f.{part}": f"output_norm.{part}" for part in ("weight", "bias")}
IN_LAYER = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}

# The numbers that Q8_0 stores with one scale. A row of another length stays in fp16.
Q8_BLOCK = 32


def file_name(precision: str) -> str:
    """Return the name of the file, which ends as llama.cpp's users expect: model-F16.gguf."""
    return f"model-{KINDS[precision].name}.gguf"


def write_gguf(directory: Path, source: Source, precision: str) -> None:
    """Write a model to a GGUF file in a directory. Ids without a token are left out: ids after them become smaller.

    Args:
        precision: `fp32`, `fp16` or `int8`, of the matrices. Norms, biases and positions are in fp32.

    Raises:
        UserError: llama.cpp would compute something else, or tokenize differently; or the weights are broken.
    """
    checkpoint, tokenizer, ids = source.checkpoint, source.tokenizer, source.used_ids
    _check_computable(checkpoint)
    _check_tokenizable(checkpoint, tokenizer)
    writer = gguf.GGUFWriter(directory / file_name(precision), "gpt2")
    _add_shape(writer, checkpoint, precision)
    _add_tokenizer(writer, checkpoint.shape, tokenizer, ids)
    if (template := source.chat_template()) is not None:
        writer.add_chat_template(template)
    for name, tensor in source.weights:
        _add_tensor(writer, name, tensor[ids] if name in (EMBEDDING, HEAD) else tensor, precision)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _check_computable(checkpoint: Checkpoint) -> None:
    """Refuse what llama.cpp computes in another way.

    Raises:
        UserError: names the setting.
    """
    shape = checkpoint.shape
    if shape.activation not in ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"):
        raise UserError(
            f"gguf: {checkpoint.name} has the activation {shape.activation}, and llama.cpp computes gelu_new", "export"
        )
    if not shape.scale_attention or shape.scale_by_layer:
        raise UserError(f"gguf: {checkpoint.name} scales attention in a way that llama.cpp does not", "export")


def _check_tokenizable(checkpoint: Checkpoint, tokenizer: TextTokenizer) -> None:
    """Refuse a tokenizer that llama.cpp does not have: anything but GPT-2's byte-level byte-pair encoding.

    Raises:
        UserError: names what differs.
    """
    found = pipeline(tokenizer.raw)
    before = found["pre_tokenizer"] or {}
    model = _vocabulary(tokenizer)
    problem = None
    if model["type"] != "BPE" or before.get("type") != "ByteLevel" or not before.get("use_regex", True):
        problem = "is no byte-level byte-pair encoding as GPT-2's"
    elif found["normalizer"] is not None:
        problem = f"changes texts before it splits them ({found['normalizer']['type']})"
    elif before.get("add_prefix_space"):
        problem = "puts a space before the first word"
    elif model.get("ignore_merges") or model.get("byte_fallback"):
        problem = "looks words up before it merges pairs, or spells characters in bytes"
    elif len(tokenizer.prefix) > 1:
        problem = "puts several tokens before a text"
    if problem:
        raise UserError(f"gguf: the tokenizer of {checkpoint.name} {problem}, which llama.cpp cannot do", "export")


def _vocabulary(tokenizer: TextTokenizer) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(tokenizer.raw.to_str())["model"]
    return found


def _add_shape(writer: gguf.GGUFWriter, checkpoint: Checkpoint, precision: str) -> None:
    shape = checkpoint.shape
    writer.add_name(checkpoint.name)
    writer.add_context_length(shape.n_positions)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_inner)
    writer.add_head_count(shape.n_head)
    writer.add_layer_norm_eps(shape.epsilon)
    writer.add_file_type(FILE_TYPES[precision])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_tokenizer(writer: gguf.GGUFWriter, shape: ModelShape, tokenizer: TextTokenizer, ids: Sequence[int]) -> None:
    place = {number: index for index, number in enumerate(ids)}
    merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in _vocabulary(tokenizer)["merges"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([tokenizer.raw.id_to_token(number) or f"<|{number}|>" for number in ids])
    writer.add_token_types(list(_token_types(tokenizer, ids)))
    writer.add_token_merges(list(merges))
    ends = list(dict.fromkeys(shape.end_ids or (tokenizer.end_id,)))
    writer.add_eos_token_id(place[ends[0]])
    if len(ends) > 1:
        writer.add_eot_token_id(place[ends[1]])
    writer.add_bos_token_id(place[tokenizer.prefix[0] if tokenizer.prefix else tokenizer.end_id])
    writer.add_add_bos_token(bool(tokenizer.prefix))


def _token_types(tokenizer: TextTokenizer, ids: Sequence[int]) -> Iterator[int]:
    """Yield how llama.cpp treats each token: special ones are cut out of texts and not shown."""
    added = tokenizer.raw.get_added_tokens_decoder()
    for number in ids:
        if number in tokenizer.special or tokenizer.raw.id_to_token(number) is None:
            yield gguf.TokenType.CONTROL
        else:
            yield gguf.TokenType.USER_DEFINED if number in added else gguf.TokenType.NORMAL


def _add_tensor(writer: gguf.GGUFWriter, name: str, tensor: Tensor, precision: str) -> None:
    """Add a tensor under llama.cpp's name, in the layout (outputs, inputs)."""
    target, is_matrix = _target(name), tensor.dim() == 2 and name != "wpe.weight"
    if not is_matrix:
        writer.add_tensor(target, tensor.float().numpy())
        return
    rows = tensor if name in (EMBEDDING, HEAD) else tensor.T
    if precision == "int8" and rows.shape[1] % Q8_BLOCK == 0:
        packed = gguf.quantize(rows.float().contiguous().numpy(), Kind.Q8_0)
        writer.add_tensor(target, packed, raw_dtype=Kind.Q8_0)
        return
    kind = torch.float32 if precision == "fp32" else torch.float16
    writer.add_tensor(target, in_type(name, rows, kind).contiguous().numpy())


def _target(name: str) -> str:
    if name in OUTER:
        return OUTER[name]
    _, layer, rest = name.split(".", 2)
    module, _, part = rest.rpartition(".")
    return f"blk.{layer}.{IN_LAYER[module]}.{part}"
