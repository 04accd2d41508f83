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

# Queries that attention takes at a time.
QUERY_CHUNK = 128

# Elements of a bf16 tensor that the GELU converts to fp32 at a time: few enough to stay in the cache.
GELU_CHUNK = 2**16

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
    """GPT-2's tanh GELU. On a CPU, torch's is slow, above all in bf16, and computes the tanh
    again in the backward pass."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        """Apply the GELU to each element; any shape."""
        needs_gradient = torch.is_grad_enabled() and x.requires_grad
        fits = x.dtype in (torch.float32, torch.bfloat16) and _is_eager_on_cpu(x)
        if needs_gradient and fits and kernels.load() is not None:
            result: Tensor = GELUWithSlope.apply(x)  # type: ignore[no-untyped-call]  # torch does not annotate it
            return result
        return super().forward(x)


class GELUWithSlope(torch.autograd.Function):
    """The GELU by our kernels, which compute value and slope in one pass. The slope is saved instead of the input."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        """x: fp32 or bf16, any shape. The result has the same dtype and shape."""
        x = x.contiguous()
        result, slope = torch.empty_like(x), torch.empty_like(x)
        if x.dtype == torch.float32:
            _gelu_and_slope(x, result, slope)
        else:
            _gelu_and_slope_in_parts(x.view(-1), result.view(-1), slope.view(-1))
        context.save_for_backward(slope)
        return result

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> Tensor:
        """gradient: the shape of x, which the result has too."""
        slope: Tensor
        (slope,) = context.saved_tensors
        return gradient * slope


def _gelu_and_slope(x: Tensor, result: Tensor, slope: Tensor) -> None:
    """Write the GELU of each element and its slope; all are contiguous and in fp32."""
    library = kernels.load()
    assert library is not None  # GELU checks it
    source, *targets = map(kernels.pointer, (x, result, slope))
    library.gelu(source, x.numel(), *targets, torch.get_num_threads())


def _gelu_and_slope_in_parts(x: Tensor, result: Tensor, slope: Tensor) -> None:
    """Do the same for bf16 in fp32, a part at a time; (N,) each."""
    buffers = torch.empty(3, min(GELU_CHUNK, len(x)))
    for first in range(0, len(x), GELU_CHUNK):
        part = slice(first, first + GELU_CHUNK)
        single, value, its_slope = buffers[:, : len(x) - first]
        single.copy_(x[part])
        _gelu_and_slope(single, value, its_slope)
        result[part].copy_(value)
        slope[part].copy_(its_slope)


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
    """Compute attention by torch's fused kernel, or step by step where that is slow: in training on a CPU with dropout
    or in bf16.

    Args:
        query, key, value: (B, H, T, D)
        attention_mask: (B or 1, 1, T, T) bool, True where a token is attended to, at most itself and those before it;
            None for all of these.
        scaling: of the scores; None is 1 / sqrt(D).

    Returns:
        (B, T, H, D), and None in place of the attention weights.
    """
    in_bf16 = query.dtype == torch.bfloat16 and query.requires_grad
    if not _is_eager_on_cpu(query) or not (dropout or in_bf16):
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return output, None
    shape = query.shape
    scale = shape[-1] ** -0.5 if scaling is None else scaling
    hidden = None if attention_mask is None else ~attention_mask.expand(shape[0], -1, -1, -1)
    flat = (x.reshape(-1, *shape[2:]) for x in (query, key, value))
    with torch.autocast("cpu", enabled=False):
        output = CausalAttention.apply(*flat, hidden, scale, dropout)  # type: ignore[no-untyped-call]  # not annotated
    return output.view(shape).transpose(1, 2), None


class CausalAttention(torch.autograd.Function):
    """Causal attention as matrix products. On a CPU, torch's fused kernel has no dropout, and a slow backward pass in
    bf16.

    Queries are taken in chunks, each with the keys up to its last query. The weights of each chunk are saved, and with
    dropout also what it leaves of them.
    """

    @staticmethod
    def forward(
        context: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        hidden: Tensor | None,
        scale: float,
        dropout: float,
    ) -> Tensor:
        """query, key, value: (B·H, T, D), which the result has too. hidden: (B, 1, T, T), True where masked out."""
        output, saved = torch.empty_like(query), []
        for first, end in _chunks(query.shape[1]):
            bias = _chunk_bias(first, end, query.dtype)
            scores = torch.baddbmm(bias, query[:, first:end], key[:, :end].transpose(1, 2), alpha=scale)
            if hidden is not None:
                by_head = scores.view(len(hidden), -1, *scores.shape[1:])
                by_head.masked_fill_(hidden[..., first:end, :end], torch.finfo(scores.dtype).min)
            weights = scores.softmax(dim=-1)
            left = dropped(weights, dropout) if dropout else weights
            output[:, first:end] = left @ value[:, :end]
            saved += [weights, left]
        context.save_for_backward(query, key, value, *saved)
        context.scale, context.dropout = scale, dropout
        return output

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """gradient: (B·H, T, D)"""
        query, key, value, *saved = context.saved_tensors
        of_query, of_key, of_value = (torch.empty_like(x) for x in (query, key, value))
        chunks = [*zip(_chunks(query.shape[1]), saved[::2], saved[1::2], strict=True)]
        # From the last chunk on: its keys are all keys, so that the others are added to numbers that are there.
        for (first, end), weights, left in reversed(chunks):
            part, adds = gradient[:, first:end], end < query.shape[1]
            of_value[:, :end].baddbmm_(left.transpose(1, 2), part, beta=adds)
            of_left = part @ value[:, :end].transpose(1, 2)
            of_scores = _score_gradient(of_left, weights, left if context.dropout else None)
            of_query[:, first:end].baddbmm_(of_scores, key[:, :end], beta=0, alpha=context.scale)
            of_key[:, :end].baddbmm_(of_scores.transpose(1, 2), query[:, first:end], beta=adds, alpha=context.scale)
        return of_query, of_key, of_value, None, None, None


def _score_gradient(gradient: Tensor, weights: Tensor, left: Tensor | None) -> Tensor:
    """Return the gradient of the scores, (B·H, Q, K), which all have.

    Args:
        gradient: of the weights; with dropout, of those that it left. Changed in place.
        left: the weights after dropout; None without it.
    """
    if left is None:
        return torch._softmax_backward_data(gradient, weights, -1, weights.dtype)
    product = gradient.mul_(left)
    return product.addcmul_(weights, product.sum(dim=-1, keepdim=True), value=-1)


def _chunks(length: int) -> list[tuple[int, int]]:
    """Return the first query and the end of each chunk."""
    return [(first, min(first + QUERY_CHUNK, length)) for first in range(0, length, QUERY_CHUNK)]


def mean_keys(length: int) -> int:
    """Return for how many keys `CausalAttention` saves a weight, in the mean of all queries."""
    return sum((end - first) * end for first, end in _chunks(length)) // length


@functools.lru_cache(maxsize=64)
def _chunk_bias(first: int, end: int, dtype: torch.dtype) -> Tensor:
    """(end - first, end), added to the scores of a chunk: -inf for keys after the query."""
    return torch.full((end - first, end), -math.inf, dtype=dtype).triu_(diagonal=1 + first)


AttentionInterface.register(ATTENTION, attention)
