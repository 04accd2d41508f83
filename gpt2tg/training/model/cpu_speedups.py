"""Faster GELU, dropout and attention for training on a CPU."""

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

# The name under which transformers finds `attention`. It has no mask function for this name, so it makes no masks:
# padding is on the right, where no real token attends to it, and other masks come with the batch.
ATTENTION = "gpt2tg"

# The score of a token that is masked out.
MASKED_SCORE = torch.finfo(torch.float32).min

# Parameters of mallopt in glibc's malloc.h, and the largest values that newer and older versions accept.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAX_THRESHOLD, MAX_OLD_THRESHOLD = 2**31 - 1, 2**25


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next training step, for the rest of the process.

    By default it returns large buffers to the system, and faults their pages in again at every step.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_TRIM_THRESHOLD, MAX_THRESHOLD)
    libc.mallopt(M_MMAP_THRESHOLD, MAX_THRESHOLD) or libc.mallopt(M_MMAP_THRESHOLD, MAX_OLD_THRESHOLD)


class GELU(nn.GELU):
    """GPT-2's tanh GELU. On a CPU, torch's is slow, and computes the tanh again in the backward pass."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        """Apply the GELU to each element; any shape."""
        needs_gradient = torch.is_grad_enabled() and x.requires_grad
        if needs_gradient and x.dtype == torch.float32 and _is_eager_on_cpu(x) and kernels.load() is not None:
            result: Tensor = GELUWithSlope.apply(x)  # type: ignore[no-untyped-call]  # torch does not annotate it
            return result
        return super().forward(x)


class GELUWithSlope(torch.autograd.Function):
    """The GELU by our kernels, which compute value and slope in one pass. The slope is saved instead of the input."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        """x: fp32, any shape, which the result has too."""
        library = kernels.load()
        assert library is not None  # GELU checks it
        x = x.contiguous()
        result, slope = torch.empty_like(x), torch.empty_like(x)
        source, *targets = map(kernels.pointer, (x, result, slope))
        library.gelu(source, x.numel(), *targets, torch.get_num_threads())
        context.save_for_backward(slope)
        return result

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> Tensor:
        """gradient: the shape of x, which the result has too."""
        slope: Tensor
        (slope,) = context.saved_tensors
        return gradient * slope


class Dropout(nn.Dropout):
    """Dropout that draws a quarter as many random bits on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of a tensor of any shape in training mode."""
        if self.training and self.p and _is_eager_on_cpu(x):
            return dropped(x, self.p)
        return super().forward(x)


def _is_eager_on_cpu(x: Tensor) -> bool:
    """Whether our operations apply: on a CPU, and not under torch.compile, which generates code of its own."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def dropped(x: Tensor, share: float) -> Tensor:
    """Return x with each element set to 0 with probability `share`, in steps of 1 / 65,536, and the others scaled up.

    An element takes 16 random bits of torch's generator. torch's own dropout takes 64, and makes a float of them.
    """
    threshold = round(share * 2**16)
    bits = torch.empty(math.ceil(x.numel() / 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    kept = torch.empty(x.shape, dtype=x.dtype)
    torch.ge(bits[: x.numel()].view(x.shape), threshold - 2**15, out=kept)
    return x * kept.mul_(2**16 / (2**16 - threshold))


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
    """Compute attention by torch's fused kernel, or step by step where that is slow: with dropout on a CPU.

    Args:
        query, key, value: (B, H, T, D)
        attention_mask: (B or 1, 1, T, T) bool, True where a token is attended to; None for plain causal attention.
        scaling: of the scores; None is 1 / sqrt(D).

    Returns:
        (B, T, H, D), and None in place of the attention weights.
    """
    if not dropout or not _is_eager_on_cpu(query):
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return output, None
    dtype, shape = query.dtype, query.shape
    scale = shape[-1] ** -0.5 if scaling is None else scaling
    with torch.autocast("cpu", enabled=False):
        query, key, value = (x.float().reshape(-1, *x.shape[2:]) for x in (query, key, value))  # (B·H, T, D)
        if attention_mask is None:
            scores = torch.baddbmm(_causal_bias(shape[2]), query, key.transpose(1, 2), alpha=scale)  # (B·H, T, T)
        else:
            scores = torch.bmm(query * scale, key.transpose(1, 2))
            scores.view(*shape[:2], *scores.shape[1:]).masked_fill_(~attention_mask, MASKED_SCORE)
        weights = dropped(scores.softmax(dim=-1), dropout)
        return (weights @ value).view(shape).transpose(1, 2).to(dtype), None


@functools.lru_cache(maxsize=4)
def _causal_bias(length: int) -> Tensor:
    """(1, T, T), added to scores: 0 up to the diagonal, and a very low score for later tokens."""
    return torch.full((1, length, length), MASKED_SCORE).triu_(diagonal=1)


AttentionInterface.register(ATTENTION, attention)
