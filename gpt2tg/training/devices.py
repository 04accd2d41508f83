"""Hide the differences between a CPU, a CUDA GPU and an Apple GPU: synchronising, memory, random states."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import psutil
import torch

# Variables with settings of torch's allocator, the newest name first.
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished its work: a GPU works asynchronously."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def memory_gb(device: torch.device) -> float:
    """Return the memory that training holds, in 10^9 bytes.

    That is the peak on a CUDA GPU, the current allocation on an Apple GPU, and the resident memory of this process on
    a CPU.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 1e9
    return float(psutil.Process().memory_info().rss) / 1e9


def device_bytes(device: torch.device) -> int:
    """Return the memory that a device has, in bytes; for a CPU that of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return int(psutil.virtual_memory().total)


def use_growing_segments(name: str) -> None:
    """Let torch's allocator on a CUDA GPU grow its segments: batches of several sizes then leave fewer gaps.

    It has an effect until torch first uses the GPU. Settings of the user are kept. Windows has no such segments.

    Args:
        name: the value of --device.
    """
    may_use_gpu = name not in ("cpu", "mps") and torch.cuda.is_available()
    if may_use_gpu and sys.platform == "linux" and not any(variable in os.environ for variable in ALLOCATOR):
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"


def bytes_of_other_processes(device: torch.device) -> int:
    """Return the memory of a CUDA GPU that is used, but not by torch in this process; 0 for other devices."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device)


def reset_peak_memory(device: torch.device) -> None:
    """Let `memory_gb` start anew: earlier runs of this process may have taken more."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def gpu_random_state(device: torch.device) -> torch.Tensor | None:
    """Return the random state of a GPU; None for a CPU. Other GPUs are not set up, which would take memory there."""
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.mps.get_rng_state() if device.type == "mps" else None


def set_gpu_random_state(device: torch.device, state: torch.Tensor) -> None:
    """Restore what `gpu_random_state` returned."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    elif device.type == "mps":
        torch.mps.set_rng_state(state)


@contextlib.contextmanager
def preserved_random_state(device: torch.device) -> Iterator[None]:
    """Restore torch's random states after the block, so that its draws on a device do not change the training."""
    state, gpu_state = torch.get_rng_state(), gpu_random_state(device)
    try:
        yield
    finally:
        torch.set_rng_state(state)
        if gpu_state is not None:
            set_gpu_random_state(device, gpu_state)
