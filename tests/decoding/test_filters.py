"""Filters against hand-made tables and against transformers' logits processors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from gpt2tg.decoding import filters

INF = torch.inf


def logits_of(*probabilities: float) -> Tensor:
    """Return logits with exactly these probabilities. (1, V)"""
    return torch.tensor([probabilities], dtype=torch.float64).log()


def kept(logits: Tensor) -> list[int]:
    """Return the tokens that are not banned in the only row."""
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


def test_kept_tokens_keep_their_logits() -> None:
    logits = logits_of(0.15, 0.5, 0.3, 0.05)
    filtered = filters.top_p(filters.top_k(logits, 3), 0.7)
    assert torch.equal(filtered[0, [1, 2]], logits[0, [1, 2]])


def test_temperature_raises_odds_to_a_power() -> None:
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
def test_no_repeat_ngram_bans_tokens_that_repeat_an_ngram(size: int, history: list[int], banned: list[int]) -> None:
    filtered = filters.no_repeat_ngram(torch.zeros(1, 6), [history], size)
    assert [token for token in range(6) if token not in kept(filtered)] == banned


def test_min_p_by_hand() -> None:
    """A fifth of the largest probability, 0.5, is 0.1."""
    assert kept(filters.min_p(logits_of(0.5, 0.3, 0.11, 0.09), 0.2)) == [0, 1, 2]


@pytest.mark.parametrize(("p", "alive"), [(0.0, [0]), (1e-9, [0, 1, 2, 3])])
def test_min_p_at_its_ends(p: float, alive: list[int]) -> None:
    expected = [0, 1, 2, 3] if p == 0 else alive
    assert kept(filters.min_p(logits_of(0.5, 0.3, 0.11, 0.09), p)) == expected
    assert kept(filters.min_p(logits_of(0.5, 0.3, 0.11, 0.09), 1.0)) == [0]


def test_typical_p_removes_too_probable_and_too_rare_tokens() -> None:
    """Entropy 1.0889 nats; surprises 0.511, 1.609, 2.303, 2.303: the nearest is 0.2, then 0.6, then the two 0.1."""
    assert kept(filters.typical_p(logits_of(0.6, 0.2, 0.1, 0.1), 0.1)) == [1]
    assert kept(filters.typical_p(logits_of(0.6, 0.2, 0.1, 0.1), 0.3)) == [0, 1]
    assert kept(filters.typical_p(logits_of(0.6, 0.2, 0.1, 0.1), 0.9)) == [0, 1, 2, 3]


def test_typical_p_stops_at_exactly_p() -> None:
    """Entropy 1.75 bits; surprises of 1, 2, 3 and 3 bits: the nearest is the second, with probability 0.25."""
    logits = logits_of(0.5, 0.25, 0.125, 0.125)
    assert kept(filters.typical_p(logits, 0.25)) == [1]
    assert kept(filters.typical_p(logits, 0.75)) == [0, 1]


@pytest.mark.parametrize(("change", "p"), [(filters.top_p, 0.2), (filters.typical_p, 0.9)])
def test_limit_does_not_depend_on_the_order_of_a_sum(
    change: Callable[[Tensor, float], Tensor], p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CUDA GPU adds in an order that changes from run to run."""
    logits = torch.randn(40, 50_000, generator=torch.Generator().manual_seed(0)) / 10
    expected = change(logits, p)

    def in_halves(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        x = x if dtype is None else x.to(dtype)
        first, second = (torch.from_numpy(np.cumsum(half.numpy(), axis=dim)) for half in x.chunk(2, dim))
        return torch.cat([first, first[:, -1:] + second], dim)

    monkeypatch.setattr(Tensor, "cumsum", in_halves)
    assert torch.equal(change(logits, p), expected)


def test_typical_p_of_one_keeps_everything() -> None:
    """Also if rounding makes the sum of all probabilities less than one."""
    logits = torch.randn(200, 40, generator=torch.Generator().manual_seed(1))
    assert torch.equal(filters.typical_p(logits, 1.0), logits)


def test_repetition_penalty_by_hand_and_with_a_window() -> None:
    logits = torch.tensor([[2.0, -2.0, 3.0, 1.0]])
    everything = filters.repetition_penalty(logits, [[0, 1, 1]], 2.0, None)
    assert everything.tolist() == [[1.0, -4.0, 3.0, 1.0]]
    assert filters.repetition_penalty(logits, [[0, 1, 1]], 2.0, 2).tolist() == [[2.0, -4.0, 3.0, 1.0]]


def test_presence_and_frequency_by_hand_and_with_a_window() -> None:
    logits = torch.zeros(2, 4)
    histories = [[0, 1, 1], [3]]
    both = filters.presence_and_frequency(logits, histories, 0.5, 0.25, None)
    assert both.tolist() == [[-0.75, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, -0.75]]
    windowed = filters.presence_and_frequency(logits, histories, 0.5, 0.25, 1)
    assert windowed.tolist() == [[0.0, -0.75, 0.0, 0.0], [0.0, 0.0, 0.0, -0.75]]


def test_sequence_bias_acts_after_the_rest_of_the_sequence() -> None:
    biases = {(2,): 1.5, (1, 3): -2.0, (0, 1, 0): 4.0}
    biased = filters.sequence_bias(torch.zeros(3, 4), [[0, 1], [1], [2]], biases)
    assert biased.tolist() == [[4.0, 0.0, 1.5, -2.0], [0.0, 0.0, 1.5, -2.0], [0.0, 0.0, 1.5, 0.0]]


def test_biases_move_to_a_device_once() -> None:
    biases, device = filters.Biases({(1, 2): 1.0, (1, 3): 2.0}), torch.device("meta")
    moved = biases.after((1,), device)
    assert {(tensor.device, tensor.shape) for tensor in moved} == {(device, (2,))}
    assert all(now is before for now, before in zip(biases.after((1,), device), moved, strict=True))


def test_ban_affects_only_the_given_rows() -> None:
    banned = filters.ban(torch.zeros(2, 3), [1], [0, 2])
    assert banned.tolist() == [[0.0, 0.0, 0.0], [-INF, 0.0, -INF]]


@pytest.mark.parametrize(
    "change",
    [
        lambda x: filters.ban(x, [0], [0, 1, 2]),
        lambda x: filters.sequence_bias(x, [[]], {(0,): -INF, (1,): -INF, (2,): -INF}),
        lambda x: filters.no_repeat_ngram(x, [[0, 1, 2]], 1),
    ],
)
def test_whole_vocabulary_can_be_banned(change: Callable[[Tensor], Tensor]) -> None:
    assert change(torch.tensor([[0.5, 2.0, 1.0]])).tolist() == [[-INF, -INF, -INF]]


@pytest.mark.parametrize(
    "change",
    [
        lambda x: filters.temperature(x, 0.7),
        lambda x: filters.top_k(x, 2),
        lambda x: filters.top_p(x, 0.9),
        lambda x: filters.min_p(x, 0.1),
        lambda x: filters.typical_p(x, 0.9),
    ],
)
def test_row_with_all_tokens_banned_affects_no_other_row(change: Callable[[Tensor], Tensor]) -> None:
    row = torch.tensor([[0.5, 2.0, 1.0, -3.0]])
    both = change(torch.cat([torch.full((1, 4), -INF), row]))
    assert both[0].tolist() == [-INF] * 4
    assert torch.equal(both[1:], change(row))


ORACLES: dict[str, tuple[Callable[[Tensor, list[list[int]]], Tensor], Callable]] = {
    "temperature": (lambda x, _: filters.temperature(x, 0.7), TemperatureLogitsWarper(0.7)),
    **{f"top_k {k}": (lambda x, _, k=k: filters.top_k(x, k), TopKLogitsWarper(k)) for k in (1, 2, 7, 40)},
    **{f"top_p {p}": (lambda x, _, p=p: filters.top_p(x, p), TopPLogitsWarper(p)) for p in (0.0, 0.3, 0.9, 0.999, 1.0)},
    **{f"min_p {p}": (lambda x, _, p=p: filters.min_p(x, p), MinPLogitsWarper(p)) for p in (0.01, 0.3, 1.0)},
    **{f"typical_p {p}": (lambda x, _, p=p: filters.typical_p(x, p), TypicalLogitsWarper(p)) for p in (0.1, 0.5, 0.95)},
    "top_k, keep 3": (lambda x, _: filters.top_k(x, 1, 3), TopKLogitsWarper(1, min_tokens_to_keep=3)),
    "top_p, keep 3": (lambda x, _: filters.top_p(x, 0.1, 3), TopPLogitsWarper(0.1, min_tokens_to_keep=3)),
    "min_p, keep 3": (lambda x, _: filters.min_p(x, 0.9, 3), MinPLogitsWarper(0.9, min_tokens_to_keep=3)),
    "typical_p, keep 3": (lambda x, _: filters.typical_p(x, 0.1, 3), TypicalLogitsWarper(0.1, min_tokens_to_keep=3)),
    "repetition_penalty 1.3": (
        lambda x, h: filters.repetition_penalty(x, h, 1.3, None),
        RepetitionPenaltyLogitsProcessor(1.3),
    ),
    "repetition_penalty 0.7": (
        lambda x, h: filters.repetition_penalty(x, h, 0.7, None),
        RepetitionPenaltyLogitsProcessor(0.7),
    ),
    "sequence_bias": (
        lambda x, h: filters.sequence_bias(x, h, {(7,): 2.0, (1, 2): -3.0, (0, 4, 5): 1.5}),
        SequenceBiasLogitsProcessor([[[7], 2.0], [[1, 2], -3.0], [[0, 4, 5], 1.5]]),
    ),
    "ban": (
        lambda x, h: filters.sequence_bias(x, h, {(7,): -INF, (1, 2): -INF}),
        NoBadWordsLogitsProcessor([[7], [1, 2]]),
    ),
    **{
        f"no_repeat_ngram {n}": (lambda x, h, n=n: filters.no_repeat_ngram(x, h, n), NoRepeatNGramLogitsProcessor(n))
        for n in (1, 2, 3, 4)
    },
}


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("kind", ["plain", "ties", "banned", "extreme"])
def test_filters_equal_transformers_and_keep_their_input(name: str, kind: str) -> None:
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
