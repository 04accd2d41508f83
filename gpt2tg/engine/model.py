"""The GPT-2 forward pass (Radford et al. 2019) in torch: token ids in, logits of the next token out.

Shapes in `engine`: B rows, T tokens read at once, P tokens attended to (cached ones and those read), C capacity of the
KV cache in tokens, W width, H heads, D head size (W = H * D), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.checkpoint.tensor_names import HEAD
from gpt2tg.engine.cpu.kernel_model import KernelModel
from gpt2tg.engine.cpu.preload import Preloaded
from gpt2tg.engine.cuda_graph import GraphCapture
from gpt2tg.engine.matrices import Matrix
from gpt2tg.engine.matrix_choice import matrix_maker, vocabulary_maker

ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "gelu_fast": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
}

# Layer, and queries, keys and values of the new tokens, each (B, H, T, D) -> the mixed values (B, H, T, D). Stores keys
# and values in a cache, and attends to what it holds.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class GPT2:
    """The weights of a GPT-2 and its forward pass. Holds no state of any sequence: that is a `Context`."""

    def __init__(
        self,
        weights: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
        shape: ModelShape,
        device: torch.device,
        precision: str = "fp32",
        ready: Preloaded | None = None,
    ) -> None:
        """Convert the weights one by one, so that memory never holds the model twice.

        Args:
            weights: by their plain names, in the order of `ModelShape.tensors`. If a head is among them, it is not
                tied to the embedding, whatever the shape says.
            precision: `fp32`, `fp16`, `int8` or `auto`; see `matrix_maker`.
            ready: matrices of these weights that were packed in advance.

        Raises:
            UserError: the device does not support the precision.
        """
        self.device = device
        self.precision, make = matrix_maker(precision, device, shape.n_embd, shape.n_inner, ready)
        make_vocabulary = vocabulary_maker(self.precision, device, make)
        self.dtype = torch.float16 if self.precision == "fp16" and device.type != "cpu" else torch.float32
        self.weights: dict[str, Tensor] = {}  # norms, biases, positions
        self.matrices: dict[str, Matrix] = {}
        by_output = {HEAD: True} | {name: by_output for name, _, _, by_output in shape.matrices()}
        for name, tensor in weights.items() if isinstance(weights, Mapping) else weights:
            if name in by_output:
                matrix = make_vocabulary(tensor.t()) if by_output[name] else make(tensor)
                self.matrices[name.removesuffix(".weight")] = matrix
            else:
                self.weights[name] = tensor.to(device, self.dtype, copy=True, memory_format=torch.contiguous_format)
        for name, matrix in self.matrices.items():
            matrix.bias = self.weights.get(f"{name}.bias")
        self.shape = replace(shape, tied="lm_head" not in self.matrices)
        self.head = self.matrices["wte" if self.shape.tied else "lm_head"]
        self._activation = ACTIVATION_FUNCTIONS[shape.activation]
        self.graph_capture = GraphCapture(device)
        """Captures decode steps as CUDA graphs, if that is possible."""
        scales = [self.attention_scale(layer) for layer in range(shape.n_layer)]
        self.kernel_model = KernelModel.if_packed(self.shape, self.weights, self.matrices, self.precision, scales)
        """The model for our CPU kernels; None if torch computes it."""

    def hidden(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Run all layers.

        Args:
            ids: (B, T) tokens to read.
            positions: (B, T) their positions in the text, from 0.
            attend: the attention of a layer, which keeps the new keys and values.

        Returns:
            (B, T, W) states after the final layer norm.
        """
        x = self.matrices["wte"].columns(ids) + F.embedding(positions, self.weights["wpe.weight"])
        for layer in range(self.shape.n_layer):
            x = x + self._self_attention(layer, self._norm(f"h.{layer}.ln_1", x), attend)
            x = x + self._feed_forward(layer, self._norm(f"h.{layer}.ln_2", x))
        return self._norm("ln_f", x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Project final states to logits: (B, W) -> (B, V)."""
        return self.head(hidden).float()

    def attention_scale(self, layer: int) -> float:
        """Return the factor of the products of queries and keys, usually 1 / sqrt(D)."""
        scale = 1 / math.sqrt(self.shape.n_embd // self.shape.n_head) if self.shape.scale_attention else 1.0
        return scale / (layer + 1) if self.shape.scale_by_layer else scale

    def attention(self, layer: int, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend by torch: each query to the keys that the mask allows.

        Args:
            query: (B, H, T, D)
            keys, values: (B, H, P, D)
            mask: (B or 1, 1, T, P), True or 0 for what is attended to, False or -inf for what is not; None attends to
                everything.

        Returns:
            (B, H, T, D)
        """
        scale = self.attention_scale(layer)
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)

    def causal_attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend by torch: each token to itself and those before it; (B, H, T, D) each, which the result has too."""
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=self.attention_scale(layer))

    @torch.inference_mode()
    def all_logits(self, ids: Sequence[int], chunk: int = 64) -> Iterator[Tensor]:
        """Read a text in one forward pass and yield the logits of the token after each of its tokens.

        Args:
            ids: T token ids.
            chunk: the logits are yielded as (chunk, V), the last chunk shorter: (T, V) would take much memory.

        Raises:
            ValueError: more tokens than the model's context length.
        """
        if len(ids) > self.shape.n_positions:
            raise ValueError(f"{len(ids)} tokens given, but the model has {self.shape.n_positions} positions")
        positions = torch.arange(len(ids), device=self.device)[None]
        hidden = self.hidden(torch.tensor([list(ids)], device=self.device), positions, self.causal_attention)
        for part in torch.split(hidden[0], chunk):
            yield self.logits(part)

    def _self_attention(self, layer: int, x: Tensor, attend: Attend) -> Tensor:
        """(B, T, W) -> (B, T, W)"""
        batch, tokens, width = x.shape
        projected = self._linear(f"h.{layer}.attn.c_attn", x)
        heads = projected.view(batch, tokens, 3, self.shape.n_head, width // self.shape.n_head)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        mixed = attend(layer, query, key, value)
        return self._linear(f"h.{layer}.attn.c_proj", mixed.transpose(1, 2).reshape(batch, tokens, width))

    def _feed_forward(self, layer: int, x: Tensor) -> Tensor:
        """(B, T, W) -> (B, T, W)"""
        inner = self._activation(self._linear(f"h.{layer}.mlp.c_fc", x))
        return self._linear(f"h.{layer}.mlp.c_proj", inner)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        """(B, T, K) -> (B, T, N)"""
        return self.matrices[name](x.flatten(0, -2)).view(*x.shape[:-1], -1)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, self.shape.epsilon)
