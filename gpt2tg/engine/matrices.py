"""The ways to hold a weight matrix and to multiply with it. Shapes: T tokens, K inputs, N outputs of a matrix."""

from __future__ import annotations

import warnings
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2tg.engine.cpu import kernels
from gpt2tg.engine.cpu.huge_pages import HugePages

# For more tokens than this, torch's own product is at least as fast as SplitSum's.
SPLIT_AT_MOST = 5
SPLITS = 4

PANELS_AT_A_TIME = 64

# On a CUDA GPU, the outputs of the vocabulary's matrix are padded to a multiple of this number.
PADDED_TO = 64

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "int8": torch.int8}


class Matrix(Protocol):
    """A matrix (K, N) in some precision."""

    bias: Tensor | None
    """(N), added to every product."""

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply: (T, K) -> (T, N)."""

    def columns(self, ids: Tensor) -> Tensor:
        """Return some columns, as a token embedding needs them: (...) -> (..., K)."""


class Plain:
    """A torch tensor, on any device."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)

    def columns(self, ids: Tensor) -> Tensor:
        return self.weight.t()[ids]


class Vocabulary(Plain):
    """The token embedding, or the head, of a model on a CUDA GPU, with logits in fp32.

    GPT-2's vocabulary is odd, and products of odd matrices are slow there. So it is padded with zeros, whose products
    are cut off.
    """

    def __init__(self, weight: Tensor) -> None:
        """Take (K, V) weights, on their device."""
        self._size = weight.shape[1]
        super().__init__(F.pad(weight.t(), (0, 0, 0, -self._size % PADDED_TO)).t())

    def __call__(self, x: Tensor) -> Tensor:
        # Logits of GPT-2 are around -100, where neighbouring numbers in fp16 are 1/16 apart. ROCm has no such product.
        is_16_bit = self.weight.dtype != torch.float32
        if is_16_bit and torch.version.hip is None:
            product = torch.mm(x, self.weight, out_dtype=torch.float32)
        else:
            product = super().__call__(x)
        return product[:, : self._size]


class SplitSum(Plain):
    """A torch tensor in fp32; for few tokens, K is split in parts that are multiplied as a batch.

    On some CPUs that lets all cores read weights, where torch's product of a vector and a matrix uses one.
    """

    def __call__(self, x: Tensor) -> Tensor:
        tokens, inputs = x.shape
        if tokens > SPLIT_AT_MOST or inputs % SPLITS or not self.weight.is_contiguous():
            return super().__call__(x)
        parts = x.view(tokens, SPLITS, inputs // SPLITS).transpose(0, 1)
        total = torch.bmm(parts, self.weight.view(SPLITS, inputs // SPLITS, -1)).sum(0)
        return total if self.bias is None else total + self.bias


class PackedFp16:
    """Weights in fp16, arithmetic in fp32, by torch's FBGEMM (x86 only)."""

    def __init__(self, weight: Tensor) -> None:
        self._half = weight.t().half()
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight.t().contiguous().float(), None)
        self.bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.quantized.linear_dynamic_fp16(x.contiguous(), self._packed)
        return product if self.bias is None else product + self.bias

    def columns(self, ids: Tensor) -> Tensor:
        return self._half[ids].float()


class PackedInt8:
    """Weights in int8 with a scale for each output, inputs rounded to 7 bits, by torch's FBGEMM (x86 only)."""

    def __init__(self, weight: Tensor) -> None:
        self._scale, self._rounded = round_to_int8(weight)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch deprecates these functions: they move, they do not disappear
            quantized = torch._make_per_channel_quantized_tensor(
                self._rounded.t().contiguous(), self._scale.double(), torch.zeros(len(self._scale), dtype=torch.long), 0
            )
            self._packed = torch.ops.quantized.linear_prepack(quantized, None)
        self.bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        # 7 bits: without VNNI, a CPU adds two products in 16 bits, which those of 8-bit inputs would overflow.
        product: Tensor = torch.ops.quantized.linear_dynamic(x.contiguous(), self._packed, True)
        return product if self.bias is None else product + self.bias

    def columns(self, ids: Tensor) -> Tensor:
        return self._rounded.t()[ids].float() * self._scale[ids][..., None]


class Panels:
    """Weights in fp32, fp16 or int8, packed in panels for our kernels.

    Arithmetic is in fp32. In int8, inputs are rounded to 8 bits too, with a scale for every few of a token.
    """

    def __init__(self, weight: Tensor, precision: str, library: kernels.Kernels, memory: HugePages) -> None:
        """
        Args:
            weight: (K, N), of any dtype and strides.
            memory: holds the packed weights. If they are in it already, the weight is not read.
        """
        self.inputs, self.outputs = weight.shape
        self.precision = precision
        self.compiled = library
        count = -(-self.outputs // library.panel)
        size = library.packed_bytes(self.inputs, self.outputs, precision) // count // DTYPES[precision].itemsize
        self.panels = memory.empty(count, size, dtype=DTYPES[precision])
        self.scale = memory.empty(self.outputs) if precision == "int8" else None
        self.bias: Tensor | None = None
        if not memory.is_packed:
            self._pack(weight)

    def _pack(self, weight: Tensor) -> None:
        """Pack some panels at a time, because weights of another dtype are converted to fp32 before."""
        width = self.compiled.panel
        for start in range(0, len(self.panels), PANELS_AT_A_TIME):
            first = start * width
            part = weight[:, first : first + PANELS_AT_A_TIME * width].float()
            unpacked = kernels.UnpackedMatrix(
                kernels.pointer(part),
                *part.stride(),
                *part.shape,
                kernels.PRECISIONS[self.precision],
                kernels.pointer(self.panels[start]),
                None if self.scale is None else kernels.pointer(self.scale[first:]),
            )
            self.compiled.pack_matrix(unpacked, torch.get_num_threads())

    def struct(self) -> kernels.Matrix:
        """Return the matrix for the kernels. It points into this object and does not keep it alive."""
        return kernels.Matrix(
            panels=kernels.pointer(self.panels),
            scale=kernels.pointer(self.scale),
            bias=kernels.pointer(self.bias),
            inputs=self.inputs,
            outputs=self.outputs,
            precision=kernels.PRECISIONS[self.precision],
        )

    def __call__(self, x: Tensor) -> Tensor:
        x, matrix = x.contiguous(), self.struct()
        product = torch.empty(len(x), self.outputs)
        threads = torch.get_num_threads()
        scratch = torch.empty(self.compiled.linear_scratch(matrix, len(x), threads))
        self.compiled.linear(matrix, len(x), *map(kernels.pointer, (x, product, scratch)), threads)
        return product

    def columns(self, ids: Tensor) -> Tensor:
        ids = ids.long().contiguous()
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.outputs:  # the kernels check nothing
            raise IndexError(f"a token is outside the vocabulary of {self.outputs}")
        columns = torch.empty(*ids.shape, self.inputs)
        self.compiled.columns(self.struct(), kernels.pointer(ids), ids.numel(), kernels.pointer(columns))
        return columns


def round_to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round weights (K, N) to integers from -127 to 127, with a scale for each output.

    Returns:
        (N) scales and (K, N) integers: a weight is about its integer times the scale of its output.
    """
    scale = weight.abs().amax(0).float().div_(127).clamp_(min=1e-12)
    return scale, (weight / scale).round_().to(torch.int8)
