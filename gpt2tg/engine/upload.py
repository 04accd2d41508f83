"""Copies between host and device that do not make the host wait."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def upload(values: Sequence[object], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """Copy numbers to the device without waiting for it."""
    return pinned(torch.tensor(values, dtype=dtype), device).to(device, non_blocking=True)


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor in page-locked memory if the device is a CUDA GPU, which then copies it asynchronously."""
    return tensor.pin_memory() if device.type == "cuda" else tensor
