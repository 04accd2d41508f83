"""Describe the machine of a measurement, and measure its memory bandwidth."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "ctranslate2", "llama-cpp-python", "onnxruntime")


def cores() -> int:
    """Return the number of physical cores that this process may use."""
    physical = psutil.cpu_count(logical=False) or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else physical
    return min(physical, allowed)


def description(packages: Iterable[str] = PACKAGES) -> dict:
    """Return processor, cores, memory, system and versions."""
    return {
        "processor": _processor(),
        "cores": cores(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in packages if (found := _version(name))},
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


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
