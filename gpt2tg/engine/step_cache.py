"""The KV cache of decode steps that wait for no host sync, and its attention. Shapes as in model.py."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2tg.engine.cuda_graph import current_device, is_switched_off
from gpt2tg.engine.model import GPT2, Attend
from gpt2tg.errors import one_line
from gpt2tg.io.memory import is_out_of_memory
from gpt2tg.io.streams import notice

# Without our attention kernel, attention reads the first slots of the cache, as many as the longest row needs, rounded
# up to this number, twice this number, and so on. Each of these sizes, a bucket, has a graph of its own.
SMALLEST_BUCKET = 128

# Query, key and value of the new tokens, keys and values of a layer, lengths of the rows, scale -> (B, H, 1, D).
AttentionKernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor]

# How far the kernel's result may be from torch's.
TOLERANCE = 1e-2


def bucket_for(length: int, positions: int) -> int:
    """Return the smallest bucket that holds so many tokens; at most the model's positions."""
    bucket = SMALLEST_BUCKET
    while bucket < length:
        bucket *= 2
    return min(bucket, positions)


class StepCache:
    """A KV cache that is allocated once, (layers, keys and values, B, H, C, D), and read with lengths on the device."""

    def __init__(self, model: GPT2, rows: int, capacity: int) -> None:
        """
        Args:
            capacity: tokens of the longest row.
        """
        self._model, self._capacity, shape = model, capacity, model.shape
        # Zeros: a masked slot has no weight in attention, but 0 * NaN, from uninitialised memory, is NaN.
        self.tensor = torch.zeros(
            *(shape.n_layer, 2, rows, shape.n_head, capacity, shape.n_embd // shape.n_head),
            device=model.device,
            dtype=model.dtype,
        )
        self._kernel = new_attention_kernel(self.tensor)
        self._rows = torch.arange(rows, device=model.device)
        self._slots = torch.arange(capacity, device=model.device)

    def bucket(self, length: int) -> int:
        """Return how many slots a step must read if the longest row has so many tokens, the new one included."""
        return bucket_for(length, self._capacity) if self._kernel is None else self._capacity

    def hidden(self, tokens: Tensor, lengths: Tensor, bucket: int) -> Tensor:
        """Read one token of each of the first N rows, and append its keys and values. No host sync.

        Args:
            tokens: (N,) ids.
            lengths: (N,) tokens that each row has in the cache.
            bucket: the slots to attend to; more than the longest row has tokens.

        Returns:
            (N, W) states after the final layer norm.
        """
        attend = self._masked(lengths, bucket) if self._kernel is None else self._by_kernel(self._kernel, lengths)
        return self._model.hidden(tokens[:, None], lengths[:, None], attend)[:, 0]

    def _by_kernel(self, kernel: AttentionKernel, lengths: Tensor) -> Attend:
        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = self.tensor[layer]
            return kernel(query, key, value, keys, values, lengths, self._model.attention_scale(layer))

        return attend

    def _masked(self, lengths: Tensor, bucket: int) -> Attend:
        """Attend by torch, to all slots of the bucket: the mask hides those beyond the length of a row."""
        rows, slots = self._rows[: len(lengths)], self._slots[:bucket]
        mask = torch.zeros(len(lengths), 1, 1, bucket, dtype=self.tensor.dtype, device=lengths.device)
        mask.masked_fill_((slots > lengths[:, None])[:, None, None], -torch.inf)

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = self.tensor[layer, :, : len(lengths), :, :bucket]
            keys[rows, :, lengths] = key[:, :, 0]
            values[rows, :, lengths] = value[:, :, 0]
            return self._model.attention(layer, query, keys, values, mask)

        return attend


def new_attention_kernel(cache: Tensor) -> AttentionKernel | None:
    """Return our attention kernel for a cache, (layers, 2, B, H, C, D); None if torch's attention is to be used."""
    _, _, rows, heads, capacity, size = cache.shape
    if cache.device.type != "cuda" or is_switched_off() or not is_kernel_usable(cache.device, cache.dtype, size):
        return None
    from gpt2tg.engine.triton_attention import SplitAttention

    return SplitAttention(rows, heads, size, capacity, cache.device)


@functools.cache
def is_kernel_usable(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether our attention kernel works: once in a process it is compared with torch's attention.

    A notice says why not, unless Triton is not installed, as on Windows.

    Raises:
        torch.OutOfMemoryError: the GPU is full.
    """
    try:
        from gpt2tg.engine.triton_attention import SplitAttention
    except ImportError:
        return False
    try:
        with torch.inference_mode(), current_device(device):
            error = kernel_error(SplitAttention(2, 3, head_size, 300, device), device, dtype, head_size)
        fault = f"its result is wrong by {error:.2g}" if not error <= TOLERANCE else None
    except Exception as failure:  # Triton, its compilers and drivers raise all kinds
        if isinstance(failure, RuntimeError) and is_out_of_memory(failure):
            raise
        fault = one_line(failure)
    if fault is not None:
        notice(f"our attention kernel is not used: {fault}. Attention is computed by torch, which is slower.")
    return fault is None


def kernel_error(kernel: AttentionKernel, device: torch.device, dtype: torch.dtype, head_size: int) -> float:
    """Run the kernel on a small cache with two rows. Return the largest difference from torch's attention."""
    generator = torch.Generator(device).manual_seed(0)
    query, key, value, keys, values = (
        torch.randn(2, 3, tokens, head_size, device=device, generator=generator).to(dtype)
        for tokens in (1, 1, 1, 300, 300)
    )
    found = kernel(query, key, value, keys, values, torch.tensor([5, 290], device=device), 0.125)
    differences = []
    for row, end in enumerate((6, 291)):  # the kernel has appended the new token
        one, held, mixed = (x[row : row + 1].float() for x in (query, keys[:, :, :end], values[:, :, :end]))
        expected = F.scaled_dot_product_attention(one, held, mixed, scale=0.125)
        differences.append((found[row] - expected[0]).abs().max().item())
    return max(differences)
