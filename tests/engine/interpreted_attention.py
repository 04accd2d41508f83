"""Runs our attention kernel in Triton's interpreter; see test_triton_attention.py. Prints the checks that passed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from gpt2tg.checkpoint.config import read_shape
from gpt2tg.checkpoint.weights import read_weights
from gpt2tg.engine import step_cache
from gpt2tg.engine.captured_context import CapturedContext
from gpt2tg.engine.model import GPT2
from gpt2tg.engine.torch_context import TorchContext
from gpt2tg.engine.triton_attention import SplitAttention

CPU = torch.device("cpu")

# Lengths on both sides of the borders of splits and blocks, by capacity of the cache.
LENGTHS = {300: [0, 1, 63, 64, 65, 127, 128, 129, 257, 299], 256: [127, 255], 128: [127, 0], 40: [0, 39, 7]}


def attend(
    lengths: list[int], capacity: int, size: int, dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return result and cache of the kernel, and of torch's attention. The cache has rows that are not in use."""
    torch.manual_seed(seed)
    rows, heads = len(lengths), 2
    cache = torch.randn(2, rows + 1, heads, capacity, size).to(dtype)
    query, key, value = torch.randn(rows, 1, 3, heads, size).to(dtype).permute(2, 0, 3, 1, 4)
    expected_cache = cache.clone()
    expected = torch.empty(rows, heads, 1, size)
    for row, length in enumerate(lengths):
        expected_cache[0, row, :, length], expected_cache[1, row, :, length] = key[row, :, 0], value[row, :, 0]
        keys, values = expected_cache[:, row, :, : length + 1].float()
        expected[row] = F.scaled_dot_product_attention(query[row].float(), keys, values, scale=0.3)
    kernel = SplitAttention(rows + 1, heads, size, capacity, CPU)
    found = kernel(query, key, value, cache[0], cache[1], torch.tensor(lengths), 0.3)
    return found, cache, expected, expected_cache


def check_attention() -> None:
    for capacity, lengths in LENGTHS.items():
        for size, dtype in [(16, torch.float16), (20, torch.float32)]:
            found, _, expected, _ = attend(lengths, capacity, size, dtype)
            assert found.dtype == dtype
            torch.testing.assert_close(found.float(), expected, atol=1e-5 if dtype == torch.float32 else 2e-3, rtol=0)


def check_cache() -> None:
    """The new token is appended, and nothing else changes."""
    _, cache, _, expected = attend(LENGTHS[300], 300, 16, torch.float16)
    assert torch.equal(cache, expected)


def check_rows() -> None:
    """A row does not depend on the lengths of others, to the bit."""
    torch.manual_seed(1)
    new, cache = torch.randn(3, 3, 2, 1, 16), torch.randn(2, 3, 2, 300, 16)
    kernel = SplitAttention(3, 2, 16, 300, CPU)
    for lengths in ([200, 0, 299], [200, 130, 5]):
        together = kernel(*new, *cache.clone(), torch.tensor(lengths), 0.3)
        alone = kernel(*new[:, :1], *cache[:, :1].clone(), torch.tensor([200]), 0.3)
        assert torch.equal(together[:1], alone)


def check_texts(directory: Path) -> None:
    """A context with the kernel gives the logits of one without."""
    shape = replace(read_shape(directory), scale_by_layer=True)
    model = GPT2(read_weights(directory, shape), shape, CPU)
    step_cache.new_attention_kernel = lambda cache: SplitAttention(
        *(cache.shape[2], cache.shape[3], cache.shape[5], cache.shape[4]), CPU
    )
    contexts = CapturedContext(model, 30), TorchContext(model, 30)
    prompts = [[5, 6, 7], [8], list(range(20))]
    for context in contexts:
        context.start(prompts)
    for rows in (None, [2, 0], [1, 1, 0]):
        if rows is not None:
            for context in contexts:
                context.select(rows)
        for token in range(3):
            tokens = torch.tensor([token, token + 1, token + 2])[: len(contexts[0].lengths)]
            found, expected = (context.step(tokens) for context in contexts)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


check_attention()
print("attention")
check_cache()
print("cache")
check_rows()
print("rows")
check_texts(Path(sys.argv[1]))
print("texts")
