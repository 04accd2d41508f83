"""Which context a model gets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import kernels_here, random_ids, read_gpt2

from gpt2tg.engine import matrix_choice, prefill
from gpt2tg.engine.contexts import new_context
from gpt2tg.engine.cpu import kernels
from gpt2tg.engine.cpu.kernel_context import KernelContext
from gpt2tg.engine.model import GPT2
from gpt2tg.engine.torch_context import TorchContext


def test_packed_model_gets_a_context_of_the_kernels(model_dir: Path) -> None:
    kernels_here()
    model = read_gpt2(model_dir)
    assert isinstance(new_context(model, 8), KernelContext)
    assert new_context(model, 8).is_exact


@pytest.mark.parametrize("maker", ["plain", "split"])
def test_other_models_get_a_context_of_torch(maker: str, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "load", lambda: None)
    monkeypatch.setattr(matrix_choice, "_cached_fastest", lambda *_: maker)
    model = read_gpt2(model_dir)
    assert isinstance(new_context(model, 8), TorchContext)
    assert not new_context(model, 8).is_exact


def test_short_prompts_are_not_padded_to_a_long_one_in_torch(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill, "FREE_TOKENS", 0)
    read: list[tuple[int, ...]] = []
    genuine = GPT2.hidden
    monkeypatch.setattr(
        GPT2, "hidden", lambda self, ids, *rest: (read.append(tuple(ids.shape)), genuine(self, ids, *rest))[1]
    )
    model = read_gpt2(model_dir)
    prompts = [random_ids(length, seed) for seed, length in enumerate([3, 40, 2, 39, 3])]
    together = TorchContext(model, 42, keep_hidden=True)
    logits = [together.start(prompts), together.step(torch.tensor([1, 2, 3, 4, 5]))]
    assert read == [(3, 3), (2, 40), (5, 1)]
    together.start(prompts)
    for row, prompt in enumerate(prompts):
        alone = TorchContext(model, 42, keep_hidden=True)
        expected = alone.start([prompt])[0]
        torch.testing.assert_close(logits[0][row], expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(together.hidden()[row], alone.hidden()[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(logits[1][row], alone.step(torch.tensor([row + 1]))[0], atol=1e-4, rtol=0)


def test_padding_is_free_in_a_small_group_and_at_most_half_of_a_large_one() -> None:
    prompts = {row: [0] * length for row, length in enumerate([10] * 31 + [1000])}
    assert list(prefill.prefill_groups(prompts)) == [[*range(31)], [31]]
    assert list(prefill.prefill_groups({0: [0] * 5, 1: [0] * 150, 2: [0]})) == [[0, 1, 2]]
    similar = {row: [0] * length for row, length in enumerate([1000, 600, 800])}
    assert list(prefill.prefill_groups(similar)) == [[0, 1, 2]]
    assert list(prefill.prefill_groups({})) == []
