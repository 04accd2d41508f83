"""Describe the machine of a measurement, and measure the limits that it sets: memory bandwidth and arithmetic."""

from __future__ import annotations

import os
import platform
import time
import warnings
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch", "transformers", "tokenizers", "safetensors", "ctranslate2", "llama-cpp-python", "openvino-genai",
    "onnxruntime-genai",
)  # fmt: skip

# Operations per second of dense products in 16 bits that are summed in 32, from the data sheets. The first name that is
# part of the device's name counts.
PEAK_FLOPS = {
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "A10G": 70e12, "A10": 125e12,
    "L40S": 362e12, "L4": 121e12, "T4": 65e12, "V100": 125e12, "RTX 4090": 165e12, "RTX 3090": 71e12,
}  # fmt: skip


def cores() -> int:
    """Return the number of physical cores that this process may use."""
    import psutil

    physical = psutil.cpu_count(logical=False) or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else physical
    return min(physical, allowed)


def description(packages: Iterable[str] = PACKAGES) -> dict:
    """Return processor, cores, memory, system and versions."""
    import psutil  # not at the top: a GPU machine without it can be measured too

    return {
        "processor": processor(),
        "cores": cores(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in packages if (found := version_of(name))},
    }


def read_bandwidth(threads: int, repeats: int = 7) -> float:
    """Return the bytes per second that all cores read while they sum 1 GiB of fp32 or multiply it by a vector.

    The better of the two counts. The product is split along its inner dimension, because a single matrix-vector product
    is limited by a core, not by memory.
    """
    import torch

    torch.set_num_threads(threads)
    parts, inner, outer = 4, 4096, 16384
    weights = torch.ones(parts, inner, outer)  # 1 GiB
    x = torch.ones(parts, 1, inner)
    seconds = []
    for _ in range(repeats):
        for read in (weights.sum, lambda: torch.bmm(x, weights).sum(0)):
            start = time.perf_counter()
            read()
            seconds.append(time.perf_counter() - start)
    return weights.nbytes / min(seconds)


def peak_flops(device_name: str) -> float | None:
    """Return the operations per second of a GPU in 16 bits by its data sheet; None if it is not listed here."""
    return next((flops for name, flops in PEAK_FLOPS.items() if name in device_name), None)


def product_flops(device: str, size: int = 8192, repeats: int = 5) -> float:
    """Return the operations per second of a product of two square matrices in bf16, the best of several runs."""
    import torch

    one, other = torch.randn(2, size, size, device=device).to(torch.bfloat16)
    one @ other
    return 2 * size**3 / min(seconds_of(lambda: one @ other, device) for _ in range(repeats))


def processor_operations(threads: int, size: int = 2048) -> dict[str, float]:
    """Return the operations per second of products of square matrices on all cores, by the numbers multiplied.

    The best of torch's ways to compute them counts, fp32 included. Where a processor lacks the instructions for narrow
    numbers, some are a hundred times slower than fp32: those are found with small matrices, and left out.
    """
    import torch

    torch.set_num_threads(threads)
    worth = _speed_of_product(_in_fp32, size // 8) / 2
    found = {
        name: [
            _speed_of_product(way, size) for way in ways if way is _in_fp32 or _speed_of_product(way, size // 8) > worth
        ]
        for name, ways in _PRODUCTS.items()
    }
    return {name: max([*speeds, *found["fp32"]]) for name, speeds in found.items()}


def _speed_of_product(way: Callable[[Any, Any], Callable[[], object]], size: int, repeats: int = 3) -> float:
    """Return the operations per second of a product of two matrices, the best of several runs."""
    import torch

    multiply = way(*torch.randn(2, size, size))
    multiply()
    return 2 * size**3 / min(seconds_of(multiply, "cpu") for _ in range(repeats))


def _in_fp32(one: Any, other: Any) -> Callable[[], object]:
    return lambda: one @ other


def _in_bf16(one: Any, other: Any) -> Callable[[], object]:
    one, other = one.bfloat16(), other.bfloat16()
    return lambda: one @ other


def _in_int8(one: Any, other: Any) -> Callable[[], object]:
    """By oneDNN."""
    import torch

    one, other = (matrix.mul(40).clamp(-127, 127).to(torch.int8) for matrix in (one, other))
    return lambda: torch._int_mm(one, other)


def _in_packed_int8(one: Any, other: Any) -> Callable[[], object]:
    """By FBGEMM, which is for x86."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch is to drop this one day
        weights = torch.quantize_per_tensor(other, 0.05, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(weights, None)
    return lambda: torch.ops.quantized.linear_dynamic(one, packed, True)


_PRODUCTS = {
    "fp32": [_in_fp32],
    "bf16": [_in_bf16],
    "int8": [_in_int8, *([_in_packed_int8] if platform.machine() in ("x86_64", "AMD64") else [])],
}


def copied_bytes_per_second(device: str, size: int = 2**30, repeats: int = 20) -> float:
    """Return the bytes per second read and written while `size` bytes are copied, the best of several runs."""
    import torch

    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(seconds_of(lambda: target.copy_(source), device) for _ in range(repeats))


def has_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16."""
    import torch

    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def seconds_of(work: Callable[[], object], device: str) -> float:
    """Return the seconds of a call, from an idle device to an idle device."""
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def processor() -> str:
    """Return the name of the processor."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def version_of(package: str) -> str | None:
    """Return the version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
