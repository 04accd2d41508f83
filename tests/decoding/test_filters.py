"""Filters against hand-made tables and against transformers' logits processors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    NoRepeatNGramLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gpt2tg.decoding import filters

INF = torch.inf


def logits_of(*probabilities: float) -> Tensor:
    """A row of logits with exactly these probabilities. (1, V)"""
    return torch.tensor([probabilities], dtype=torch.float64).log()


def kept(logits: Tensor) -> list[int]:
    """The tokens still alive in the one row."""
    return (logits[0] > -INF).nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("k", "alive"),
    [(1, [1]), (2, [1, 2]), (3, [0, 1, 2, 3]), (4, [0, 1, 2, 3]), (5, [0, 1, 2, 3, 4]), (99, [0, 1, 2, 3, 4])],
)
def test_top_k_keeps_the_most_probable_and_ties_of_the_last(k: int, alive: list[int]) -> None:
    assert kept(filters.top_k(logits_of(0.1, 0.45, 0.3, 0.1, 0.05), k)) == alive


@pytest.mark.parametrize(
    ("p", "alive"),
    [
        (0.0, [1]),
        (0.4, [1]),
        (0.55, [1, 2]),
        (0.79, [1, 2]),
        (0.85, [0, 1, 2]),
        (0.96, [0, 1, 2, 3]),
        (1.0, [0, 1, 2, 3]),
    ],
)
def test_top_p_keeps_the_smallest_set_that_holds_p(p: float, alive: list[int]) -> None:
    assert kept(filters.top_p(logits_of(0.15, 0.5, 0.3, 0.05), p)) == alive


def test_what_is_kept_keeps_its_logit() -> None:
    logits = logits_of(0.15, 0.5, 0.3, 0.05)
    filtered = filters.top_p(filters.top_k(logits, 3), 0.7)
    assert torch.equal(filtered[0, [1, 2]], logits[0, [1, 2]])


def test_temperature_makes_odds_a_power() -> None:
    halved = filters.temperature(logits_of(0.8, 0.2), 0.5).softmax(dim=1)
    torch.testing.assert_close(halved, torch.tensor([[16 / 17, 1 / 17]], dtype=torch.float64))


@pytest.mark.parametrize(
    ("size", "history", "banned"),
    [
        (1, [3, 1, 3], [1, 3]),
        (2, [1, 2, 3, 1], [2]),
        (2, [1, 2, 1, 3, 1], [2, 3]),
        (2, [1], []),
        (3, [1, 2, 3, 1, 2], [3]),
        (3, [1, 2, 3, 2, 1], []),
        (3, [2], []),
        (2, [4, 4], [4]),
    ],
)
def test_no_repeat_ngram_bans_what_would_complete_a_seen_one(size: int, history: list[int], banned: list[int]) -> None:
    filtered = filters.no_repeat_ngram(torch.zeros(1, 6), [history], size)
    assert [token for token in range(6) if token not in kept(filtered)] == banned


def test_no_repeat_ngram_leaves_a_token_alive() -> None:
    filtered = filters.no_repeat_ngram(torch.tensor([[0.0, 1.0]]), [[0, 1]], 1)
    assert kept(filtered) != []


ORACLES: dict[str, tuple[Callable[[Tensor, list[list[int]]], Tensor], Callable]] = {
    "temperature": (lambda x, _: filters.temperature(x, 0.7), TemperatureLogitsWarper(0.7)),
    **{f"top_k {k}": (lambda x, _, k=k: filters.top_k(x, k), TopKLogitsWarper(k)) for k in (1, 2, 7, 40)},
    **{f"top_p {p}": (lambda x, _, p=p: filters.top_p(x, p), TopPLogitsWarper(p)) for p in (0.0, 0.3, 0.9, 0.999, 1.0)},
    **{
        f"no_repeat_ngram {n}": (lambda x, h, n=n: filters.no_repeat_ngram(x, h, n), NoRepeatNGramLogitsProcessor(n))
        for n in (1, 2, 3, 4)
    },
}


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("kind", ["plain", "ties", "banned", "extreme"])
def test_filters_equal_transformers_and_leave_their_input_alone(name: str, kind: str) -> None:
    ours, theirs = ORACLES[name]
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(50, 40, generator=generator) * 4
    if kind == "ties":
        logits = logits.round()
    if kind == "banned":
        logits[torch.rand(50, 40, generator=generator) < 0.5] = -INF
        logits[:, 0] = 0.0
    if kind == "extreme":
        logits = logits * 1e4
    histories = torch.randint(0, 6, (50, 12), generator=generator)
    before = logits.clone()
    result = ours(logits, histories.tolist())
    assert torch.equal(logits, before)
    assert torch.equal(result, theirs(histories, before.clone()))
