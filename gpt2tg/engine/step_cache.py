"""The KV cache of decode steps that wait for no host sync, and its attention. Shapes as in model.py."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2tg.engine.compilers import find_obstacle
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


def bucket_for(length: int, limit: int) -> int:
    """Return the smallest bucket that holds so many tokens; at most `limit`."""
    bucket = SMALLEST_BUCKET
    while bucket < length:
        bucket *= 2
    return min(bucket, limit)


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
            bucket: more than the tokens of the longest row; a number that `bucket` returned.

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
    if cache.device.type != "cuda" or is_switched_off() or not is_kernel_usable(cache.device, cache.dtype, heads, size):
        return None
    from gpt2tg.engine.triton_attention import SplitAttention

    return SplitAttention(rows, heads, size, capacity, cache.device)


@functools.cache
def is_kernel_usable(device: torch.device, dtype: torch.dtype, heads: int, size: int) -> bool:
    """Whether our attention kernel works, with heads of this size: it is compared with torch's attention.

    A notice says why not.

    Raises:
        torch.OutOfMemoryError: the GPU is full.
    """
    fault = find_obstacle(device)
    if fault is None:
        try:
            fault = _find_fault(device, dtype, heads, size)
        except ImportError:
            return False  # there is no Triton for this system, such as Windows
        except Exception as error:  # Triton, its compilers and drivers raise all kinds
            if is_out_of_memory(error):
                raise
            fault = one_line(error)
    if fault is not None:
        notice(f"our attention kernel is not used: {fault}. Attention is computed by torch, which is slower.")
    return fault is None


@torch.inference_mode()
def _find_fault(device: torch.device, dtype: torch.dtype, heads: int, size: int) -> str | None:
    """Run the kernel on a small cache with two rows. Return what is wrong with its result, or None."""
    from gpt2tg.engine.triton_attention import SplitAttention

    generator = torch.Generator(device).manual_seed(0)
    with current_device(device):
        cache = torch.randn(2, 2, heads, SMALLEST_BUCKET * 3, size, device=device, generator=generator).to(dtype)
        new = torch.randn(2, 1, 3, heads, size, device=device, generator=generator).to(dtype)
        query, key, value = new.permute(2, 0, 3, 1, 4)  # as the model makes them
        kernel = SplitAttention(2, heads, size, cache.shape[3], device)
        found = kernel(query, key, value, cache[0], cache[1], torch.tensor([5, 300], device=device), 0.125)
        differences = []
        for row, end in enumerate((6, 301)):  # the kernel has appended the new token
            keys, values = cache[:, row, :, :end].float()
            expected = F.scaled_dot_product_attention(query[row].float(), keys, values, scale=0.125)
            differences.append((found[row].float() - expected).abs().max().item())
    error = max(differences, key=lambda difference: (math.isnan(difference), difference))
    return None if error <= TOLERANCE else f"its result is wrong by {error:.2g}"
