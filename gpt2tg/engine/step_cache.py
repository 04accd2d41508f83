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
        self._model, self.capacity, shape = model, capacity, model.shape
        # Zeros: a masked slot has no weight in attention, but 0 * NaN, from uninitialised memory, is NaN.
        self.tensor = torch.zeros(
            *(shape.n_layer, 2, rows, shape.n_head, capacity, shape.n_embd // shape.n_head),
            device=model.device,
            dtype=model.dtype,
        )
        self._kernel = new_attention_kernel(self.tensor)
        self._rows = torch.arange(rows, device=model.device)
        self._slots = torch.arange(capacity, device=model.device)

    def bucket(self, length: int, new: int = 1) -> int:
        """Return how many slots a step must read.

        Args:
            length: the tokens of the longest row, the new ones included.
            new: the tokens of a row that are read at once.
        """
        return bucket_for(length, self.capacity) if self._kernel is None or new > 1 else self.capacity

    def hidden(self, tokens: Tensor, lengths: Tensor, bucket: int) -> Tensor:
        """Read T tokens of each of the first N rows, and append their keys and values. No host sync.

        Args:
            tokens: (N, T) ids.
            lengths: (N,) tokens that each row has in the cache before.
            bucket: at least the tokens of the longest row afterwards; a number that `bucket` returned.

        Returns:
            (N, T, W) states after the final layer norm.
        """
        new = tokens.shape[1]
        positions = lengths[:, None] if new == 1 else lengths[:, None] + self._slots[:new]
        is_for_kernel = self._kernel is not None and new == 1
        attend = self._by_kernel(lengths) if is_for_kernel else self._masked(positions, bucket)
        return self._model.hidden(tokens, positions, attend)

    def _by_kernel(self, lengths: Tensor) -> Attend:
        kernel = self._kernel
        assert kernel is not None

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = self.tensor[layer]
            return kernel(query, key, value, keys, values, lengths, self._model.attention_scale(layer))

        return attend

    def _masked(self, positions: Tensor, bucket: int) -> Attend:
        """Attend by torch, to all slots of the bucket: the mask hides those after the position (N, T) of a token."""
        rows, slots = self._rows[: len(positions), None], self._slots[:bucket]
        mask = torch.zeros(*positions.shape, bucket, dtype=self.tensor.dtype, device=positions.device)
        mask = mask.masked_fill_(slots > positions[:, :, None], -torch.inf)[:, None]

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = self.tensor[layer, :, : len(positions), :, :bucket]
            keys[rows, :, positions] = key.transpose(1, 2)
            values[rows, :, positions] = value.transpose(1, 2)
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
