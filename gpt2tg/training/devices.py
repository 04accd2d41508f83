"""What differs between a CPU, a CUDA GPU and one of Apple's: waiting for it, its memory, its random numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psutil
import torch


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was asked for: a GPU answers before it has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def memory_gb(device: torch.device) -> float:
    """What training holds: the memory of a GPU, at most where it tells, or that of this process, in 10^9 bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 1e9
    return psutil.Process().memory_info().rss / 1e9


def device_bytes(device: torch.device) -> int:
    """The memory of a GPU, or of the machine, which Apple's share with it."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return psutil.virtual_memory().total


@contextlib.contextmanager
def undisturbed_randomness() -> Iterator[None]:
    """Leave torch's random state as it was, on all devices: what is drawn inside must not change the training."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    apple = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        if apple is not None:
            torch.mps.set_rng_state(apple)
