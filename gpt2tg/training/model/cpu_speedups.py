"""Training on a processor instead of a GPU: what torch computes slowly there, in other ways."""

from __future__ import annotations

import ctypes
import functools
import math
import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from gpt2tg.engine.cpu import kernels

# Under this name transformers finds `attention`. It knows no function that makes masks for it, and so makes none:
# padding stands on the right, where no token that counts sees it, and other masks come with the batch.
ATTENTION = "gpt2tg"

# The score of a token that is not seen.
LEAST = torch.finfo(torch.float32).min

# The names of settings in glibc's malloc.h, and the most that they take: in its newer versions, and in older ones.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
MOST, MOST_BEFORE = 2**31 - 1, 2**25


def keep_freed_memory() -> None:
    """Let what a step has freed be there for the next one.

    glibc would give it back to the system each time, and take it again page by page. It is a setting of the process,
    and stays.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(TRIM_THRESHOLD, MOST)
    libc.mallopt(MMAP_THRESHOLD, MOST) or libc.mallopt(MMAP_THRESHOLD, MOST_BEFORE)


class GELU(nn.GELU):
    """GPT-2's, by tanh, which torch computes slowly on a processor, and twice: for the value and for the gradient."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, which the result has too."""
        learns = torch.is_grad_enabled() and x.requires_grad
        if learns and x.dtype == torch.float32 and _computes_here(x) and kernels.load() is not None:
            return GELUWithSlope.apply(x)
        return super().forward(x)


class GELUWithSlope(torch.autograd.Function):
    """By our kernels, in one go: what is kept for the gradient is the slope, instead of what the GELU was given."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        """x: in 32 bits."""
        x = x.contiguous()
        result, slope = torch.empty_like(x), torch.empty_like(x)
        start, *made = map(kernels.pointer, (x, result, slope))
        kernels.load().gelu(start, x.numel(), *made, torch.get_num_threads())
        context.save_for_backward(slope)
        return result

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> Tensor:
        """The shape of x."""
        (slope,) = context.saved_tensors
        return gradient * slope


class Dropout(nn.Dropout):
    """As torch's; on a processor from a quarter of the random bits."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, which the result has too."""
        if self.training and self.p and _computes_here(x):
            return dropped(x, self.p)
        return super().forward(x)


def _computes_here(x: Tensor) -> bool:
    """Whether on a processor, and not compiled: torch.compile makes code of its own of torch's operations."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def dropped(x: Tensor, share: float) -> Tensor:
    """Each number is 0 with a probability of `share`, to 1 / 65,536, and the others make up for it.

    Sixteen bits of torch's generator decide on a number; torch takes 64, and makes a float of them.
    """
    least = round(share * 2**16)
    bits = torch.empty(math.ceil(x.numel() / 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    kept = torch.empty(x.shape, dtype=x.dtype)
    torch.ge(bits[: x.numel()].view(x.shape), least - 2**15, out=kept)
    return x * kept.mul_(2**16 / (2**16 - least))


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """As transformers' function for torch's fused attention, which on a processor knows no dropout: there without it.

    Args:
        query, key, value: (B, H, T, D)
        attention_mask: (B or 1, 1, T, T) bool, True where a token is seen; None where all are that came before.

    Returns:
        (B, T, H, D), and None for the weights.
    """
    if not dropout or not _computes_here(query):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    kind, shape = query.dtype, query.shape
    with torch.autocast("cpu", enabled=False):
        query, key, value = (x.float().reshape(-1, *x.shape[2:]) for x in (query, key, value))  # (B·H, T, D)
        if attention_mask is None:
            scores = torch.baddbmm(_later(shape[2]), query, key.transpose(1, 2), alpha=scaling)  # (B·H, T, T)
        else:
            scores = torch.bmm(query * scaling, key.transpose(1, 2))
            scores.view(*shape[:2], *scores.shape[1:]).masked_fill_(~attention_mask, LEAST)
        weights = dropped(scores.softmax(dim=-1), dropout)
        return (weights @ value).view(shape).transpose(1, 2).to(kind), None


@functools.lru_cache(maxsize=4)
def _later(length: int) -> Tensor:
    """(1, T, T), what is added to scores: nothing where a token came before, or is the same."""
    return torch.full((1, length, length), LEAST).triu_(diagonal=1)


AttentionInterface.register(ATTENTION, attention)
