"""Which is the largest, and in which order: on a processor numpy asks its vector units where it has code for them, and
then answers in a tenth of the time that torch takes. The numbers are of 32 or 64 bits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def argmax(numbers: Tensor) -> Tensor:
    """Where the largest of each row stands; the first of several. (B, V) -> (B,)"""
    return torch.from_numpy(np.argmax(numbers.detach().numpy(), axis=1)) if numbers.is_cpu else numbers.argmax(dim=1)


def ascending(numbers: Tensor) -> Tensor:
    """Each row in ascending order, on a processor. (B, V) -> (B, V)"""
    return torch.from_numpy(np.sort(numbers.detach().numpy(), axis=1))
