"""The matrices of a GPT-2 and the ways to multiply with them: by precision, by device, by what is fastest here.

Letters in shapes: M items, K inputs, N outputs.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from gpt2tg.engine.cpu import kernels
from gpt2tg.engine.cpu.huge_pages import HugePages
from gpt2tg.engine.cpu.preload import Preloaded
from gpt2tg.errors import UserError

# One text, five beams, eight texts: what the ways to multiply are measured with.
MEASURED_ITEMS = (1, 5, 8)

# Beyond so many items torch's matrix product beats the split sum, or is no slower.
SPLIT_AT_MOST = 5
SPLITS = 4

PANELS_AT_A_TIME = 64

# No model is measured wider than this.
WIDEST = 2048

# Bytes of a matrix that a core's own cache holds.
SMALL = 4_000_000


class Matrix(Protocol):
    """A matrix (K, N), held in some precision."""

    bias: Tensor | None
    """(N), added to every product."""

    def __call__(self, x: Tensor) -> Tensor:
        """(M, K) -> (M, N)"""

    def columns(self, ids: Tensor) -> Tensor:
        """Some columns, by their numbers: (...) -> (..., K). What a token embedding is asked for."""


# (K, N) weights -> the matrix that holds them.
Maker = Callable[[Tensor], Matrix]


class Plain:
    """A tensor as torch holds it, on any device."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)

    def columns(self, ids: Tensor) -> Tensor:
        return self.weight.t()[ids]


class SplitSum(Plain):
    """For few items, the inputs are split and the parts multiplied as a batch: on some processors both cores read
    weights then, where torch's product of a vector and a matrix keeps one waiting. The arithmetic is fp32 still."""

    def __call__(self, x: Tensor) -> Tensor:
        items, inputs = x.shape
        if items > SPLIT_AT_MOST or inputs % SPLITS or not self.weight.is_contiguous():
            return super().__call__(x)
        parts = x.view(items, SPLITS, inputs // SPLITS).transpose(0, 1)
        total = torch.bmm(parts, self.weight.view(SPLITS, inputs // SPLITS, -1)).sum(0)
        return total if self.bias is None else total + self.bias


class PackedFp16:
    """Weights in 16 bits, arithmetic in 32 (FBGEMM, x86 alone)."""

    def __init__(self, weight: Tensor) -> None:
        self._half = weight.t().half()
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight.t().contiguous().float(), None)
        self.bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        product = torch.ops.quantized.linear_dynamic_fp16(x.contiguous(), self._packed)
        return product if self.bias is None else product + self.bias

    def columns(self, ids: Tensor) -> Tensor:
        return self._half[ids].float()


class PackedInt8:
    """Weights in 8 bits with a scale for each output; the inputs are rounded to 7 bits (FBGEMM, x86 alone)."""

    def __init__(self, weight: Tensor) -> None:
        self._scale, self._rounded = round_to_int8(weight)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch means to move these functions, not to drop them
            quantized = torch._make_per_channel_quantized_tensor(
                self._rounded.t().contiguous(), self._scale.double(), torch.zeros(len(self._scale), dtype=torch.long), 0
            )
            self._packed = torch.ops.quantized.linear_prepack(quantized, None)
        self.bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        # Inputs of 7 bits: without VNNI a processor adds two products in 16 bits, and those of 8 bits do not fit.
        product = torch.ops.quantized.linear_dynamic(x.contiguous(), self._packed, True)
        return product if self.bias is None else product + self.bias

    def columns(self, ids: Tensor) -> Tensor:
        return self._rounded.t()[ids].float() * self._scale[ids][..., None]


class Panels:
    """Weights laid out for our own kernels; the arithmetic is fp32 whatever they are held in.

    They lie in panels, (panels, K, panel width), the last one filled up with zeros.
    """

    def __init__(self, weight: Tensor, precision: str, library: kernels.Kernels, memory: HugePages) -> None:
        self.inputs, self.outputs = weight.shape
        self.precision = precision
        self.compiled = library
        kind = {"fp32": torch.float32, "fp16": torch.float16, "int8": torch.int8}[precision]
        panel = library.panel
        count = -(-self.outputs // panel)
        self.panels = memory.empty(count, self.inputs, panel, dtype=kind)
        self.scale = memory.empty(self.outputs) if precision == "int8" else None
        self.bias: Tensor | None = None
        if memory.is_laid_out:
            return
        # Some panels at a time: of weights that are stored in another precision a part is converted, not all.
        for start in range(0, count, PANELS_AT_A_TIME):
            first = start * panel
            part = weight[:, first : first + PANELS_AT_A_TIME * panel].float()
            stored = kernels.Stored(
                kernels.pointer(part),
                *part.stride(),
                *part.shape,
                kernels.PRECISIONS[precision],
                kernels.pointer(self.panels[start]),
                None if self.scale is None else kernels.pointer(self.scale[first:]),
            )
            library.lay_out(stored, torch.get_num_threads())

    def structure(self) -> kernels.Matrix:
        """As the kernels are given it; valid as long as this object lives."""
        return kernels.Matrix(
            panels=kernels.pointer(self.panels),
            scale=kernels.pointer(self.scale),
            bias=kernels.pointer(self.bias),
            inputs=self.inputs,
            outputs=self.outputs,
            precision=kernels.PRECISIONS[self.precision],
        )

    def __call__(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        product = torch.empty(len(x), self.outputs)
        packed = torch.empty(len(x) + self.compiled.items, self.inputs)
        pointers = map(kernels.pointer, (x, product, packed))
        self.compiled.linear(self.structure(), len(x), *pointers, torch.get_num_threads())
        return product

    def columns(self, ids: Tensor) -> Tensor:
        panel = self.panels.shape[2]
        columns = self.panels[ids // panel, :, ids % panel].float()
        return columns if self.scale is None else columns * self.scale[ids][..., None]


def round_to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights as whole numbers from -127 to 127, with what a unit of each output is worth.

    Returns:
        (N) scales and (K, N) rounded weights.
    """
    scale = weight.abs().amax(0).float().div_(127).clamp_(min=1e-12)
    return scale, (weight / scale).round_().to(torch.int8)


def matrix_maker(
    precision: str, device: torch.device, width: int, inner: int, ready: Preloaded | None = None
) -> tuple[str, Maker]:
    """How to hold the matrices of a model: the precision that there will be, and what makes a matrix of (K, N) weights.

    A processor for which no 8- or 16-bit kernels are at hand computes in fp32.

    Args:
        precision: `fp32`, `fp16`, `int8`, or `auto`: fp16 on a CUDA GPU, else fp32.
        width, inner: of the model, to measure what is fastest.
        ready: what was made ready of the model, whose matrices are then asked for in the order of its tensors.

    Raises:
        UserError: 8 bits on a GPU.
    """
    if precision == "auto":
        precision = "fp16" if device.type == "cuda" else "fp32"
    memory = HugePages(ready, precision)
    if device.type != "cpu":
        if precision == "int8":
            raise UserError(f"int8 is for the CPU; on {device} use fp16 or fp32", "precision")
        kind = torch.float16 if precision == "fp16" else torch.float32
        return precision, lambda weight: Plain(weight.to(device, kind))
    library = kernels.load()
    if precision == "fp32":
        return precision, _fastest_in_fp32(library, memory, width, inner)
    if library is not None:
        return precision, lambda weight: Panels(weight, precision, library, memory)
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return "fp32", _fastest_in_fp32(None, memory, width, inner)
    return precision, PackedFp16 if precision == "fp16" else PackedInt8


def _fastest_in_fp32(library: kernels.Kernels | None, memory: HugePages, width: int, inner: int) -> Maker:
    makers = _in_fp32(library, memory)
    if library is not None and 4 * width * inner < SMALL:
        return makers["panels"]  # the calls take longer than the products, and the kernels need one for all
    # What is measured with shares no memory with the model, and so is given back.
    return makers[_remembered(_in_fp32(library, HugePages()), width, inner)]


def _in_fp32(library: kernels.Kernels | None, memory: HugePages) -> dict[str, Maker]:
    makers: dict[str, Maker] = {
        "plain": lambda weight: Plain(weight.float()),
        "split": lambda weight: SplitSum(weight.float()),
    }
    if library is not None:
        makers["panels"] = lambda weight: Panels(weight, "fp32", library, memory)
    return makers


def _remembered(makers: dict[str, Maker], width: int, inner: int) -> str:
    """The name of the fastest, measured once per machine, number of threads, torch version, kernels, and shape."""
    try:
        key = f"{' '.join(makers)} {width}x{inner} {torch.get_num_threads()} {kernels.fingerprint()}"
        file = kernels.cache_directory() / "fastest.json"
    except OSError:
        return measure(makers, width, inner)
    known = _known(file)
    if known.get(key) in makers:
        return known[key]
    fastest = measure(makers, width, inner)
    with contextlib.suppress(OSError):  # it will be measured again
        beside = file.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps({**known, key: fastest}), encoding="utf-8")
        os.replace(beside, file)
    return fastest


def _known(file: Path) -> dict[str, str]:
    """What was measured before, as far as it can be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    entries = content.items() if isinstance(content, dict) else ()
    return {key: name for key, name in entries if isinstance(name, str)}


def measure(makers: dict[str, Maker], width: int, inner: int) -> str:
    """Which way is fastest over a few numbers of items: some matrices, too large for a core's cache, in turns.

    Of a matrix beyond reason a part is enough.
    """
    width, inner = min(width, WIDEST), min(inner, 4 * WIDEST)
    copies = max(2, min(8, 40_000_000 // (4 * width * inner)))
    matrices = {name: [make(torch.ones(width, inner)) for _ in range(copies)] for name, make in makers.items()}
    seconds = dict.fromkeys(makers, 0.0)
    for items in MEASURED_ITEMS:
        x = torch.ones(items, width)
        turns: dict[str, list[float]] = {name: [] for name in makers}
        for _ in range(5):
            for name, held in matrices.items():
                start = time.perf_counter()
                for matrix in held:
                    matrix(x)
                turns[name].append(time.perf_counter() - start)
        for name, measured in turns.items():
            seconds[name] += min(measured)  # what others computed meanwhile is not the way's fault
    return min(seconds, key=seconds.__getitem__)
