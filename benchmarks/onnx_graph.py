"""GPT-2's forward pass as a torch module that exports to ONNX, as ONNX Runtime GenAI wants it.

Its model builder does not know GPT-2. As in the graphs that it builds, attention is one fused operator, which writes
keys and values into a preallocated cache. Logits are computed for the last token alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2LMHeadModel


class Attention(torch.autograd.Function):
    """ONNX Runtime's fused attention: B rows, T new tokens, H heads of width D, a cache for N tokens."""

    @staticmethod
    def forward(_: Any, qkv: Tensor, keys: Tensor, values: Tensor, *__: Any) -> tuple[Tensor, ...]:
        """(B, T, 3 H D), twice (B, H, N, D) -> (B, T, H D), twice (B, H, N, D). Only the shapes are right."""
        return qkv[..., : qkv.shape[-1] // 3].clone(), keys.clone(), values.clone()

    @staticmethod
    def symbolic(graph: Any, qkv: Any, keys: Any, values: Any, before: Any, length: Any, heads: int) -> Any:
        """Return the operator. `before` is each row's last position (B), `length` the tokens of the longest row."""
        absent = graph.op("prim::Constant")  # keys and values are part of `qkv`
        absent.setType(torch._C.OptionalType.ofTensor())
        inputs = (qkv, absent, absent, keys, values, before, length)
        operator = "com.microsoft::GroupQueryAttention"
        return graph.op(operator, *inputs, num_heads_i=heads, kv_num_heads_i=heads, outputs=3)


class Forward(nn.Module):
    """GPT-2: B rows, T new tokens, N tokens of cache, H heads of width D, vocabulary V."""

    def __init__(self, model: GPT2LMHeadModel) -> None:
        super().__init__()
        self.model = model
        self.heads = model.config.n_head

    def forward(self, ids: Tensor, mask: Tensor, positions: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """(B, T) ids and positions, (B, all tokens) mask, keys and values per layer (B, H, N, D).

        Returns:
            (B, 1, V) logits, keys and values (B, H, N, D).
        """
        body = self.model.transformer
        before = (mask.sum(1) - 1).to(torch.int32)
        length = torch.onnx.operators.shape_as_tensor(mask)[1].to(torch.int32)
        x = body.wte(ids) + body.wpe(positions)
        present: list[Tensor] = []
        for layer, block in enumerate(body.h):
            qkv = self._linear(block.attn.c_attn, block.ln_1(x))
            mixed, *cache = Attention.apply(qkv, *past[2 * layer : 2 * layer + 2], before, length, self.heads)
            present += cache
            x = x + self._linear(block.attn.c_proj, mixed)
            inner = F.gelu(self._linear(block.mlp.c_fc, block.ln_2(x)), approximate="tanh")
            x = x + self._linear(block.mlp.c_proj, inner)
        return self.model.lm_head(body.ln_f(x[:, -1:])), *present

    @staticmethod
    def _linear(conv1d: nn.Module, x: Tensor) -> Tensor:
        return x @ conv1d.weight + conv1d.bias


def export(source: Path, file: Path) -> None:
    """Write the checkpoint as an ONNX graph in fp32."""
    import onnx

    model = GPT2LMHeadModel.from_pretrained(source).eval()
    config = model.config
    names = [f"{layer}.{part}" for layer in range(config.n_layer) for part in ("key", "value")]
    past = torch.zeros(2, config.n_head, 3, config.n_embd // config.n_head)
    ids, mask = torch.ones(2, 4, dtype=torch.long), torch.ones(2, 7, dtype=torch.long)
    tokens, cache = {0: "rows", 1: "tokens"}, {0: "rows", 2: "cache"}
    torch.onnx.export(
        Forward(model),
        (ids, mask, ids, *[past] * len(names)),
        str(file),
        dynamo=False,
        do_constant_folding=True,
        input_names=["input_ids", "attention_mask", "position_ids", *(f"past.{name}" for name in names)],
        output_names=["logits", *(f"present.{name}" for name in names)],
        dynamic_axes={"input_ids": tokens, "attention_mask": {0: "rows", 1: "all"}, "position_ids": tokens}
        | {f"{when}.{name}": cache for name in names for when in ("past", "present")},
        opset_version=17,
        custom_opsets={"com.microsoft": 1},
    )
    graph = onnx.load(str(file))
    logits = graph.graph.output[0].type.tensor_type.shape.dim
    for dimension, size in zip(logits[1:], (1, config.vocab_size), strict=True):  # how the runtime knows what it gets
        dimension.dim_value = size
    onnx.save(graph, str(file))


def quantize(file: Path) -> None:
    """Replace the matrices by int8 in blocks of 32 weights, multiplied by int8 activations."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    blocks = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, accuracy_level=4, bits=8)
    quantizer = MatMulNBitsQuantizer(onnx.load(str(file)), algo_config=blocks)
    quantizer.process()
    quantizer.model.save_model_to_file(str(file))


def runtime_settings(source: Path) -> dict:
    """Return what ONNX Runtime GenAI wants to read beside the graph."""
    from transformers import GPT2Config

    config = GPT2Config.from_pretrained(source)
    decoder = {
        "filename": "model.onnx",
        "head_size": config.n_embd // config.n_head,
        "hidden_size": config.n_embd,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_head,
        "num_hidden_layers": config.n_layer,
        "session_options": {},
        "inputs": {
            **{name: name for name in ("input_ids", "attention_mask", "position_ids")},
            "past_key_names": "past.%d.key",
            "past_value_names": "past.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), config.eos_token_id)
    model = {"context_length": config.n_positions, "vocab_size": config.vocab_size, "decoder": decoder}
    return {
        # A decoder with one tensor for keys and one for values in each layer. Its type "gpt2" has both in one tensor.
        "model": {"type": "llama"} | model | ids,
        "search": {"max_length": config.n_positions, "past_present_share_buffer": True, "do_sample": False},
    }
