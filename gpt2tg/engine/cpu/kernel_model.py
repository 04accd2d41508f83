"""A model in the structs of the kernels, and its forward pass.

Shapes as in model.py; S selected tokens, whose logits are computed; R rows of the KV cache, which sequences share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.engine.cpu import kernels
from gpt2tg.engine.cpu.thread_count import ThreadCount
from gpt2tg.engine.matrices import Matrix, Panels


class KernelModel:
    """The weights of a GPT-2 as C structs. Holds the tensors they point to."""

    def __init__(
        self,
        shape: ModelShape,
        weights: Mapping[str, Tensor],
        matrices: Mapping[str, Panels],
        precision: str,
        scales: Sequence[float],
    ) -> None:
        """
        Args:
            scales: the factor of the attention scores, by layer.
        """
        self._shape, self._weights, self._matrices = shape, dict(weights), dict(matrices)
        self._library = self._matrices["wte"].compiled
        self.tile = self._library.tile
        # Rounded weights do not justify keys and values in 32 bits, and 16 bits are read in half the time.
        self.cache_precision = "fp32" if precision == "fp32" else "fp16"
        self._thread_count = ThreadCount()
        self._layers = (kernels.Layer * shape.n_layer)(*(self._layer(*layer) for layer in enumerate(scales)))
        self._model = kernels.Model(
            layers=self._layers,
            positions=self._vector("wpe.weight"),
            norm_weight=self._vector("ln_f.weight"),
            norm_bias=self._vector("ln_f.bias"),
            embedding=self._matrix("wte"),
            head=self._matrix("wte" if shape.tied else "lm_head"),
            depth=shape.n_layer,
            width=shape.n_embd,
            heads=shape.n_head,
            activation=kernels.ACTIVATIONS[shape.activation],
            epsilon=shape.epsilon,
        )

    @classmethod
    def if_packed(
        cls,
        shape: ModelShape,
        weights: Mapping[str, Tensor],
        matrices: Mapping[str, Matrix],
        precision: str,
        scales: Sequence[float],
    ) -> KernelModel | None:
        """Return the model for the kernels; None unless all of its matrices are packed for them."""
        packed = {name: matrix for name, matrix in matrices.items() if isinstance(matrix, Panels)}
        return cls(shape, weights, packed, precision, scales) if len(packed) == len(matrices) else None

    def _layer(self, number: int, scale: float) -> kernels.Layer:
        name = f"h.{number}"
        return kernels.Layer(
            norm_1_weight=self._vector(f"{name}.ln_1.weight"),
            norm_1_bias=self._vector(f"{name}.ln_1.bias"),
            norm_2_weight=self._vector(f"{name}.ln_2.weight"),
            norm_2_bias=self._vector(f"{name}.ln_2.bias"),
            attention_in=self._matrix(f"{name}.attn.c_attn"),
            attention_out=self._matrix(f"{name}.attn.c_proj"),
            mlp_in=self._matrix(f"{name}.mlp.c_fc"),
            mlp_out=self._matrix(f"{name}.mlp.c_proj"),
            scale=scale,
        )

    def _vector(self, name: str) -> int | None:
        return kernels.pointer(self._weights[name])

    def _matrix(self, name: str) -> kernels.Matrix:
        return self._matrices[name].struct()

    def padded(self, capacity: int) -> int:
        """Return a capacity rounded up to a multiple of `tile`, as a cache of the kernels needs it."""
        return -(-capacity // self.tile) * self.tile

    def empty_cache(self, rows: int, capacity: int) -> Tensor:
        """Return an uninitialised KV cache (layers, 2, R, W * C). Pages that are never written to take no memory.

        Each layer holds its keys (R, H, C / tile, D, tile), then its values (R, H, C, D).
        """
        dtype = torch.float32 if self.cache_precision == "fp32" else torch.float16
        return torch.empty(self._shape.n_layer, 2, rows, self._shape.n_embd * self.padded(capacity), dtype=dtype)

    def tiles(self, cache: Tensor) -> Tensor:
        """View a KV cache (layers, 2, R, W * C) as (layers, 2, R, H, C / tile, D * tile): the tokens in groups of
        `tile`, in which keys and values alike are contiguous."""
        head_size = self._shape.n_embd // self._shape.n_head
        return cache.view(*cache.shape[:3], self._shape.n_head, -1, head_size * self.tile)

    def forward(
        self,
        cache: Tensor,
        ids: Sequence[int],
        positions: Sequence[int],
        cache_rows: Tensor,
        selected: Sequence[int],
        hidden: Tensor | None,
    ) -> Tensor:
        """Read T tokens, which may belong to different rows. The kernels trust these arguments: nothing is checked.

        Args:
            cache: a cache from `empty_cache`; the keys and values of the tokens are written to it.
            ids: T token ids.
            positions: T places of the tokens in their rows.
            cache_rows: (T, C) int32, the cache row that holds each position of the token's row; at the token's own
                position, the cache row to write to.
            selected: S indices of tokens.
            hidden: (T, W) is filled with the states after the final layer norm; or None.

        Returns:
            (S, V) logits after the selected tokens.
        """
        capacity = cache_rows.shape[1]
        logits = torch.empty(len(selected), self._shape.vocab_size)
        lists = [torch.tensor(numbers, dtype=torch.int32) for numbers in (ids, positions, selected)]
        in_cache = kernels.Cache(
            kernels.pointer(cache), cache.shape[2], capacity, kernels.PRECISIONS[self.cache_precision]
        )
        with self._thread_count.measured(len(ids)) as threads:
            # Allocated anew each time: several threads may use one model.
            scratch = torch.empty(self._library.forward_scratch(self._model, len(ids), capacity, threads))
            tensors = (*lists[:2], cache_rows, lists[2], logits, hidden, scratch)
            batch = kernels.Batch(len(ids), len(selected), *map(kernels.pointer, tensors))
            self._library.forward(self._model, in_cache, batch, threads)
        return logits
