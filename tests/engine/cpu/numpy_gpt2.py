"""A small GPT-2 twice: in numpy in fp64, written as in the paper, and in the structs of the kernels. Needs no torch.

Shapes: T tokens of one text, W width, V vocabulary, H heads, D = W / H head size; K inputs and N outputs of a matrix;
R rows of the KV cache, C its capacity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt2tg.engine.cpu import kernels

Array = NDArray[np.generic]

DTYPES = {"fp32": np.float32, "fp16": np.float16}
GROUP = 64  # inputs of a product in int8 that are rounded with one scale
EPSILON = 1e-5


def address(array: Array | None) -> int | None:
    """Return the address of an array, which must be contiguous; None for none."""
    assert array is None or array.flags.c_contiguous
    return None if array is None else array.ctypes.data


def random(*shape: int, seed: int) -> Array:
    """Return numbers in fp32 around zero."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rounded(weight: Array, precision: str) -> Array:
    """Return weights (K, N) rounded to a precision, in fp64."""
    if precision == "int8":
        scale = int8_scale(weight)
        return np.rint(weight / scale).astype(np.float64) * scale
    return weight.astype(DTYPES[precision]).astype(np.float64)


def int8_scale(weight: Array) -> Array:
    """Return the scale of each output (N) of weights (K, N)."""
    return np.maximum(np.abs(weight).max(0) / np.float32(127), np.float32(1e-12))


def product(x: Array, weight: Array, precision: str) -> Array:
    """Multiply in fp64, with weights, and in int8 inputs, rounded to a precision: (T, K) times (K, N)."""
    if precision == "int8":
        x = np.concatenate([round_to_int8(x[:, start : start + GROUP]) for start in range(0, x.shape[1], GROUP)], 1)
    return x @ rounded(weight, precision)


def round_to_int8(x: Array) -> Array:
    """Round a group of inputs of each token, so that its largest one becomes 127 times a scale."""
    largest = np.abs(x).max(1, keepdims=True).astype(np.float32)
    largest[largest == 0] = 1
    return np.rint(x * (np.float32(127) / largest).astype(np.float64)) * (largest / np.float32(127))


class Packed:
    """A matrix that the kernels have packed."""

    def __init__(
        self,
        library: kernels.Kernels,
        weight: Array,
        precision: str,
        bias: Array | None = None,
        by_output: bool = False,
        threads: int = 1,
    ) -> None:
        """
        Args:
            weight: (K, N) in fp32.
            by_output: whether to hand it over as (N, K), as some files store it.
        """
        inputs, outputs = weight.shape
        stored = np.ascontiguousarray(weight.T if by_output else weight)
        self._library, self.bias = library, bias
        self.panels = np.empty(library.packed_bytes(inputs, outputs, precision), np.uint8)
        self.scale = np.empty(outputs, np.float32) if precision == "int8" else None
        code = kernels.PRECISIONS[precision]
        strides = (1, inputs) if by_output else (outputs, 1)
        unpacked = kernels.UnpackedMatrix(
            address(stored), *strides, inputs, outputs, code, address(self.panels), address(self.scale)
        )
        library.pack_matrix(unpacked, threads)
        self.struct = kernels.Matrix(address(self.panels), address(self.scale), address(bias), inputs, outputs, code)

    def __call__(self, x: Array, threads: int = 1) -> Array:
        """Multiply: (T, K) to (T, N)."""
        x = np.ascontiguousarray(x)
        y = np.empty((len(x), self.struct.outputs), np.float32)
        scratch = np.empty(self._library.linear_scratch(self.struct, len(x), threads), np.float32)
        self._library.linear(self.struct, len(x), address(x), address(y), address(scratch), threads)
        return y


@dataclass(frozen=True)
class Shape:
    """The shape of a model."""

    width: int = 48
    inner: int = 100
    heads: int = 3
    vocabulary: int = 77
    depth: int = 2
    positions: int = 64
    activation: str = "gelu_new"


MATRICES = ("attention_in", "attention_out", "mlp_in", "mlp_out")


class Weights:
    """Random weights: matrices (K, N) with a bias, and vectors, in fp32."""

    def __init__(self, shape: Shape) -> None:
        w, inner = shape.width, shape.inner
        self.shape = shape
        self.embedding, self.positions = random(w, shape.vocabulary, seed=1), random(shape.positions, w, seed=2)
        sizes = dict(zip(MATRICES, ((w, 3 * w), (w, w), (w, inner), (inner, w)), strict=True))
        self.layers = [
            {
                name: (0.2 * random(*size, seed=10 * n + k), random(size[1], seed=10 * n + k + 5))
                for k, (name, size) in enumerate(sizes.items())
            }
            for n in range(10, 10 + shape.depth)
        ]
        self.norms = [(1 + 0.1 * random(w, seed=100 + n), random(w, seed=200 + n)) for n in range(2 * shape.depth + 1)]


def normalised(x: Array, norm: tuple[Array, Array]) -> Array:
    """Layer norm: (T, W) to (T, W)."""
    return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + EPSILON) * norm[0] + norm[1]


def activated(x: Array, activation: str) -> Array:
    """Apply the activation function of the MLP."""
    if activation == "relu":
        return np.maximum(x, 0)
    if activation == "gelu":
        return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def in_cache(numbers: Array, precision: str) -> Array:
    """Round keys or values to the precision of the KV cache."""
    return numbers if precision == "fp32" else numbers.astype(np.float16).astype(np.float64)


def attended(projected: Array, heads: int, precision: str) -> Array:
    """Causal attention: queries, keys and values (T, 3 W) to (T, W)."""
    tokens = len(projected)
    queries, keys, values = projected.reshape(tokens, 3, heads, -1).transpose(1, 2, 0, 3)  # (H, T, D) each
    scores = queries @ in_cache(keys, precision).transpose(0, 2, 1) / math.sqrt(queries.shape[2])
    scores[:, np.triu(np.ones((tokens, tokens), bool), 1)] = -np.inf
    shares = np.exp(scores - scores.max(2, keepdims=True))
    mixed = shares / shares.sum(2, keepdims=True) @ in_cache(values, precision)
    return mixed.transpose(1, 0, 2).reshape(tokens, -1)


def expected(weights: Weights, ids: Sequence[int], precision: str) -> tuple[Array, Array]:
    """The forward pass of one text: (T, V) logits, and (T, W) states after the final layer norm, in fp64."""
    x = rounded(weights.embedding, precision).T[list(ids)] + weights.positions[: len(ids)]
    for n, layer in enumerate(weights.layers):

        def linear(x: Array, name: str, layer: Mapping[str, tuple[Array, Array]] = layer) -> Array:
            weight, bias = layer[name]
            return product(x, weight, precision) + bias

        projected = linear(normalised(x, weights.norms[2 * n]), "attention_in")
        x = x + linear(attended(projected, weights.shape.heads, precision), "attention_out")
        inner = linear(normalised(x, weights.norms[2 * n + 1]), "mlp_in")
        x = x + linear(activated(inner, weights.shape.activation), "mlp_out")
    hidden = normalised(x, weights.norms[-1])
    return product(hidden, weights.embedding, precision), hidden


class KernelGPT2:
    """The same model in the kernels, with a KV cache of R rows."""

    def __init__(self, library: kernels.Kernels, weights: Weights, precision: str, rows: int = 1) -> None:
        shape = weights.shape
        self._library, self._weights, self._rows = library, weights, rows
        self.capacity = -(-shape.positions // library.tile) * library.tile
        self._embedding = Packed(library, weights.embedding, precision, by_output=True)
        self._packed = [
            {name: Packed(library, weight, precision, bias) for name, (weight, bias) in layer.items()}
            for layer in weights.layers
        ]
        self._layers = (kernels.Layer * shape.depth)(*(self._layer(n, packed) for n, packed in enumerate(self._packed)))
        self._model = kernels.Model(
            layers=self._layers,
            positions=address(weights.positions),
            norm_weight=address(weights.norms[-1][0]),
            norm_bias=address(weights.norms[-1][1]),
            embedding=self._embedding.struct,
            head=self._embedding.struct,
            depth=shape.depth,
            width=shape.width,
            heads=shape.heads,
            activation=kernels.ACTIVATIONS[shape.activation],
            epsilon=EPSILON,
        )
        self._precision = "fp32" if precision == "fp32" else "fp16"
        numbers = (shape.depth, 2, rows, shape.width * self.capacity)
        self._cache = np.empty(numbers, DTYPES[self._precision])
        self.forget()

    def forget(self) -> None:
        """Empty the KV cache: what is read before it is written shows."""
        self._cache.fill(np.nan)

    def _layer(self, number: int, packed: Mapping[str, Packed]) -> kernels.Layer:
        (one, one_bias), (two, two_bias) = self._weights.norms[2 * number : 2 * number + 2]
        scale = 1 / math.sqrt(self._weights.shape.width / self._weights.shape.heads)
        norms = (address(one), address(one_bias), address(two), address(two_bias))
        return kernels.Layer(*norms, *(packed[name].struct for name in MATRICES), scale)

    def read(
        self,
        texts: Mapping[int, Sequence[int]],
        start: int | Mapping[int, int] = 0,
        history: Mapping[int, Sequence[int]] | None = None,
        threads: int = 1,
    ) -> tuple[Array, Array]:
        """Read some tokens of some rows in one forward pass.

        Args:
            start: the position of the first token, of all rows or of each.
            history: for some rows, the cache row that holds each position.

        Returns:
            (T, V) logits and (T, W) states, row after row.
        """
        ids, positions, tables = [], [], []
        for row, text in texts.items():
            first = start if isinstance(start, int) else start[row]
            table = np.full(self.capacity, row, np.int32)
            shared = (history or {}).get(row, ())
            table[: len(shared)] = shared
            ids += text
            positions += range(first, first + len(text))
            tables += [table] * len(text)
        ids, positions = np.array(ids, np.int32), np.array(positions, np.int32)
        tables, selected = np.array(tables, np.int32), np.arange(len(ids), dtype=np.int32)
        shape = self._weights.shape
        logits = np.empty((len(ids), shape.vocabulary), np.float32)
        hidden = np.empty((len(ids), shape.width), np.float32)
        scratch = np.full(
            self._library.forward_scratch(self._model, len(ids), self.capacity, threads), np.nan, np.float32
        )
        arrays = (ids, positions, tables, selected, logits, hidden, scratch)
        batch = kernels.Batch(len(ids), len(ids), *map(address, arrays))
        cache = kernels.Cache(address(self._cache), self._rows, self.capacity, kernels.PRECISIONS[self._precision])
        self._library.forward(self._model, cache, batch, threads)
        return logits, hidden
