"""Choose how to hold the matrices of a model: by precision, by device, and by what is fastest on this machine."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from gpt2tg.engine.cpu import compiler, kernels
from gpt2tg.engine.cpu.huge_pages import HugePages
from gpt2tg.engine.cpu.preload import Preloaded
from gpt2tg.engine.matrices import Matrix, PackedFp16, PackedInt8, Panels, Plain, SplitSum, Vocabulary
from gpt2tg.errors import UserError
from gpt2tg.io.atomic import replacing

# (K, N) weights -> the matrix that holds them.
Maker = Callable[[Tensor], Matrix]

# Devices on which cuBLAS multiplies. On `meta`, tests look at the shapes of what a CUDA GPU would compute.
CUDA = ("cuda", "meta")

# Numbers of tokens that are timed: one sequence, five beams, a batch of eight.
TIMED_TOKENS = (1, 5, 8)

# Wider models are timed at this width.
WIDEST = 2048

# Bytes of a matrix that fits in a core's own cache.
SMALL = 4_000_000


def matrix_maker(
    precision: str, device: torch.device, width: int, inner: int, ready: Preloaded | None = None
) -> tuple[str, Maker]:
    """Choose how to hold the matrices of a model.

    A CPU without kernels for fp16 and int8, ours or torch's, falls back to fp32.

    Args:
        precision: `fp32`, `fp16`, `int8`, or `auto`: fp16 on a CUDA GPU, else fp32.
        width, inner: the width of the model and of its MLP; products of this shape are timed.
        ready: matrices of the model that were packed in advance. The matrices must then be made in the order of
            `ModelShape.matrices`.

    Returns:
        The precision that is used, and what makes a matrix from (K, N) weights.

    Raises:
        UserError: int8 on a GPU.
    """
    if precision == "auto":
        precision = "fp16" if device.type == "cuda" else "fp32"
    memory = HugePages(ready, precision)
    if device.type != "cpu":
        if precision == "int8":
            raise UserError(f"int8 is for the CPU; on {device} use fp16 or fp32", "precision")
        dtype = _gpu_dtype(precision)
        return precision, lambda weight: Plain(weight.to(device, dtype))
    library = kernels.load()
    if precision == "fp32":
        return precision, _fastest_in_fp32(library, memory, width, inner)
    if library is not None:
        return precision, lambda weight: Panels(weight, precision, library, memory)
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return "fp32", _fastest_in_fp32(None, memory, width, inner)
    return precision, PackedFp16 if precision == "fp16" else PackedInt8


def vocabulary_maker(precision: str, device: torch.device, make: Maker) -> Maker:
    """Choose how to hold the token embedding and the head. Their weights (K, V) are stored as (V, K).

    Args:
        precision: the one that is used.
        make: makes the other matrices, and on a CPU these too.
    """
    if device.type == "cpu":
        return make
    dtype, kind = _gpu_dtype(precision), Vocabulary if device.type in CUDA else Plain
    # Sent as they are stored: torch would transpose (K, V) on the CPU first, which takes longer than sending it.
    return lambda weight: kind(weight.t().to(device, dtype).t())


def _gpu_dtype(precision: str) -> torch.dtype:
    return torch.float16 if precision == "fp16" else torch.float32


def _fastest_in_fp32(library: kernels.Kernels | None, memory: HugePages, width: int, inner: int) -> Maker:
    makers = _makers_in_fp32(library, memory)
    if library is not None and 4 * width * inner < SMALL:
        # A call takes longer than the product of so small a matrix, and the kernels need one call for a whole pass.
        return makers["panels"]
    # What is timed has memory of its own, which is freed afterwards.
    return makers[_cached_fastest(_makers_in_fp32(library, HugePages()), width, inner)]


def _makers_in_fp32(library: kernels.Kernels | None, memory: HugePages) -> dict[str, Maker]:
    makers: dict[str, Maker] = {
        "plain": lambda weight: Plain(weight.float()),
        "split": lambda weight: SplitSum(weight.float()),
    }
    if library is not None:
        makers["panels"] = lambda weight: Panels(weight, "fp32", library, memory)
    return makers


def _cached_fastest(makers: dict[str, Maker], width: int, inner: int) -> str:
    """Return the name of the fastest maker. It is timed once per machine, thread count, torch version and shape."""
    try:
        key = f"{' '.join(makers)} {width}x{inner} {torch.get_num_threads()} {compiler.fingerprint()}"
        file = compiler.cache_directory() / "fastest.json"
    except OSError:
        return time_makers(makers, width, inner)
    known = _read_cache(file)
    if known.get(key) in makers:
        return known[key]
    fastest = time_makers(makers, width, inner)
    with contextlib.suppress(OSError), replacing(file) as draft:  # not cached: timed again next time
        draft.write_text(json.dumps({**known, key: fastest}), encoding="utf-8")
    return fastest


def _read_cache(file: Path) -> dict[str, str]:
    """Return the entries of the cache file, as far as it is readable."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    entries = content.items() if isinstance(content, dict) else ()
    return {key: name for key, name in entries if isinstance(name, str)}


def time_makers(makers: dict[str, Maker], width: int, inner: int) -> str:
    """Time products of each maker's matrices in turn, and return the name of the fastest.

    Several matrices are used in turn, so that together they exceed a core's cache, as those of a model do.
    """
    width, inner = min(width, WIDEST), min(inner, 4 * WIDEST)
    copies = max(2, min(8, 40_000_000 // (4 * width * inner)))
    matrices = {name: [make(torch.ones(width, inner)) for _ in range(copies)] for name, make in makers.items()}
    seconds = dict.fromkeys(makers, 0.0)
    for tokens in TIMED_TOKENS:
        x = torch.ones(tokens, width)
        rounds: dict[str, list[float]] = {name: [] for name in makers}
        for _ in range(5):
            for name, held in matrices.items():
                start = time.perf_counter()
                for matrix in held:
                    matrix(x)
                rounds[name].append(time.perf_counter() - start)
        for name, measured in rounds.items():
            seconds[name] += min(measured)  # the round that other programs disturbed least
    return min(seconds, key=seconds.__getitem__)
