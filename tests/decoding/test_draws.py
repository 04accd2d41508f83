"""Drawn texts against the exact distribution over all texts.

The distributions are computed here with plain numbers, from the definitions of the filters and of the strategies.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.decoding import beam, sampling
from gpt2tg.generation.filter_chain import filter_chain
from gpt2tg.options import decoding_options

END = 0
Ids = tuple[int, ...]

TABLE = [
    [0.3, 1.9, 0.8, -0.5, 1.2, -1.6, 0.1],
    [0.2, 1.1, 2.0, 0.6, -0.9, 1.5, -1.8],
    [-0.7, 0.4, 0.9, 2.3, 1.7, -1.2, 0.1],
    [1.4, -0.3, 1.0, 0.3, 2.1, 0.7, -2.0],
    [0.9, 1.8, -1.1, 1.3, 0.5, 2.2, -0.2],
    [0.0, 0.8, 1.6, -0.6, 1.9, 0.4, 2.4],
    [1.2, -1.5, 0.7, 1.0, -0.1, 1.7, 0.5],
]


def logits_after(ids: Sequence[int], vocabulary: int = len(TABLE)) -> list[float]:
    """Return the logits after the prompt and these new ids. No two tokens and no two texts are equally probable."""
    return TABLE[((ids or [1])[-1] + 3 * len(ids)) % len(TABLE)][:vocabulary]


class Table:
    """A model that returns a row of the table, chosen by the newest token and the number of tokens."""

    def __init__(self, vocabulary: int = len(TABLE)) -> None:
        self._vocabulary = vocabulary
        self._texts: list[Ids] = []

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        self._texts = [()] * len(prompts)
        return self._logits()

    def step(self, tokens: Tensor) -> Tensor:
        self._texts = [(*ids, token) for ids, token in zip(self._texts, tokens.tolist(), strict=True)]
        assert len(self._texts[0]) < 100, "the texts do not end"
        return self._logits()

    def select(self, rows: Sequence[int]) -> None:
        self._texts = [self._texts[row] for row in rows]

    def _logits(self) -> Tensor:
        return torch.tensor([logits_after(ids, self._vocabulary) for ids in self._texts])


def filtered(
    logits: Sequence[float],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    typical_p: float | None = None,
    keep: int = 1,
) -> dict[int, float]:
    """Return the remaining logits by token: each filter as its paper defines it, in this order."""
    left = {token: logit / temperature for token, logit in enumerate(logits)}

    def first(order: Sequence[int], enough: float) -> int:
        """Return how many tokens, in this order, have a total probability of p."""
        share = probabilities(left)
        sums = itertools.accumulate(share[token] for token in order)
        return next((i for i, total in enumerate(sums, start=1) if total >= enough), len(order))

    def only(order: Sequence[int], count: int) -> dict[int, float]:
        return {token: left[token] for token in order[: max(count, keep)]}

    def best_first() -> list[int]:
        return sorted(left, key=lambda token: -left[token])

    if top_k is not None:
        left = only(best_first(), top_k)
    if top_p is not None:
        left = only(best_first(), first(best_first(), top_p))
    if min_p is not None:
        share = probabilities(left)
        left = only(best_first(), sum(p >= min_p * max(share.values()) for p in share.values()))
    if typical_p is not None:
        share = probabilities(left)
        entropy = sum(-p * math.log(p) for p in share.values())
        order = sorted(left, key=lambda token: abs(-math.log(share[token]) - entropy))
        left = only(order, first(order, typical_p))
    return left


def probabilities(logits: Mapping[Hashable, float]) -> dict:
    weights = {key: math.exp(logit) for key, logit in logits.items()}
    return {key: weight / sum(weights.values()) for key, weight in weights.items()}


def p_value(counts: Mapping[Hashable, int], expected: Mapping[Hashable, float]) -> float:
    """Return the p-value of a chi-square test of the counts, with rare outcomes taken together."""
    draws = sum(counts.values())
    assert sum(expected.values()) == pytest.approx(1)
    assert not set(counts) - set(expected), "something was drawn that has no probability"
    common = [outcome for outcome, share in expected.items() if share * draws >= 10]
    pairs = [(counts.get(outcome, 0), expected[outcome] * draws) for outcome in common]
    rest = (draws - sum(count for count, _ in pairs), draws - sum(wanted for _, wanted in pairs))
    pairs += [rest] if rest[1] >= 10 else []
    assert len(pairs) > 1
    statistic = sum((count - wanted) ** 2 / wanted for count, wanted in pairs)
    return torch.special.gammaincc(torch.tensor((len(pairs) - 1) / 2), torch.tensor(statistic / 2)).item()


def test_p_value_equals_the_standard_tables() -> None:
    """The upper 0.1 % point of chi-square with one degree of freedom is 10.828, with two 13.816."""
    two = p_value({"a": 1000 + 73.573, "b": 1000 - 73.573}, {"a": 0.5, "b": 0.5})
    three = p_value({"a": 1000 + 83.114, "b": 1000 - 83.114, "c": 1000}, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3})
    assert (two, three) == pytest.approx((0.001, 0.001), rel=0.01)


# --- sampling token by token --------------------------------------------------------------------------------------


def sampled_texts(room: int, **shape: float) -> dict[Ids, float]:
    """Return the probability of every text."""
    texts: dict[Ids, float] = {}

    def write(ids: Ids, probability: float) -> None:
        if ids and (ids[-1] == END or len(ids) == room):
            texts[ids] = probability
            return
        for token, share in probabilities(filtered(logits_after(ids), **shape)).items():  # type: ignore[arg-type]
            write((*ids, token), probability * share)

    write((), 1.0)
    return texts


@pytest.mark.parametrize(
    ("strategy", "shape"),
    [
        ("sample", {}),
        ("sample", {"temperature": 0.5}),
        ("sample", {"temperature": 1.7}),
        ("sample", {"min_p": 0.3}),
        ("sample", {"typical_p": 0.6}),
        ("sample", {"temperature": 1.5, "min_p": 0.4}),
        ("sample", {"temperature": 0.6, "typical_p": 0.7}),
        ("sample", {"min_p": 0.2, "typical_p": 0.8}),
        ("top_k", {"top_k": 4}),
        ("top_k", {"top_k": 4, "temperature": 2.0}),
        ("top_k", {"top_k": 5, "min_p": 0.35}),
        ("top_p", {"top_p": 0.8}),
        ("top_p", {"top_p": 0.7, "temperature": 0.6}),
        ("top_p", {"top_p": 0.85, "min_p": 0.3}),
        ("top_p", {"top_p": 0.9, "typical_p": 0.5}),
        ("top_p", {"top_k": 4, "top_p": 0.8}),
        ("top_p", {"temperature": 1.5, "top_k": 5, "top_p": 0.85, "min_p": 0.4, "typical_p": 0.8}),
    ],
    ids=str,
)
def test_sampled_texts_follow_the_exact_distribution(
    tokenizer: TextTokenizer, strategy: str, shape: dict[str, float]
) -> None:
    """Texts have two tokens, or one that ends the text."""
    off = {"top_k": len(TABLE), "top_p": 1.0} if strategy in ("top_k", "top_p") else {}
    options = decoding_options({"decoding": strategy, "temperature": 1.0, **off, **shape})
    chain = filter_chain(options, tokenizer, [END]).filters
    draws, room = 5000, 2
    written: list[list[int]] = [[] for _ in range(draws)]
    draw = sampling.Draw([sampling.stream(1, 0, sample) for sample in range(draws)])

    def finish(_: int, ids: Sequence[int]) -> str | None:
        return "eos" if ids[-1] == END else "length" if len(ids) == room else None

    for token in sampling.decode(Table(), [[1]], [0] * draws, chain, draw, finish):
        written[token.sample].append(token.id)
    assert p_value(Counter(map(tuple, written)), sampled_texts(room, **shape)) > 0.001


# --- beam sampling ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """The state of a search: its live and its finished texts, best first, as (score, ids)."""

    live: tuple[tuple[float, Ids], ...] = ((0.0, ()),)
    finished: tuple[tuple[float, Ids], ...] = ()


def ordered_draws(shares: Mapping[Hashable, float], count: int) -> dict[tuple, float]:
    """Return the probability of every sequence of draws without replacement."""
    found: dict[tuple, float] = {}
    for drawn in itertools.permutations(shares, min(count, len(shares))):
        probability, left = 1.0, sum(shares.values())
        for item in drawn:
            probability *= shares[item] / left
            left -= shares[item]
        found[drawn] = probability
    return found


def searched_texts(
    vocabulary: int, beams: int, room: int, early_stopping: str, length_penalty: float, **shape: float
) -> dict[tuple[Ids, ...], float]:
    """Return the probability of every result of beam_sample: its finished texts, best first.

    At each step 2K continuations are drawn without replacement, in proportion to the probability of the whole text
    so far. Those among the first K that end are finished, the K best of the others live on.
    """
    outcomes: dict[tuple[Ids, ...], float] = defaultdict(float)
    states = {State(): 1.0}
    for length in range(1, room + 1):
        following: dict[State, float] = defaultdict(float)
        for state, probability in states.items():
            scores = {
                (*ids, token): score + logprob
                for score, ids in state.live
                for token, logprob in continuations(ids, vocabulary, shape).items()
            }
            for drawn, share in ordered_draws(probabilities(scores), 2 * beams).items():
                new = after(state, [(scores[ids], ids) for ids in drawn], length == room, beams, length_penalty)
                if is_over(new, beams, early_stopping, length_penalty, room):
                    outcomes[tuple(ids for _, ids in new.finished)] += probability * share
                else:
                    following[new] += probability * share
        states = following
    assert not states
    return outcomes


def continuations(ids: Ids, vocabulary: int, shape: Mapping[str, float]) -> dict[int, float]:
    """Return the filtered log-probabilities of the next token."""
    shares = probabilities(dict(enumerate(logits_after(ids, vocabulary))))
    return filtered([math.log(share) for share in shares.values()], **shape, keep=2)  # type: ignore[arg-type]


def after(state: State, drawn: Sequence[tuple[float, Ids]], is_last: bool, beams: int, length_penalty: float) -> State:
    ended = [(score / len(ids) ** length_penalty, ids) for score, ids in drawn[:beams] if is_last or ids[-1] == END]
    going = [] if is_last else [text for text in drawn if text[1][-1] != END]
    return State(
        tuple(sorted(going, reverse=True)[:beams]), tuple(sorted([*state.finished, *ended], reverse=True)[:beams])
    )


def is_over(state: State, beams: int, early_stopping: str, length_penalty: float, room: int) -> bool:
    if not state.live or len(state.finished) < beams:
        return not state.live
    score, ids = state.live[0]
    length = room if early_stopping == "never" and length_penalty > 0 else len(ids)
    return early_stopping == "true" or score / length**length_penalty <= state.finished[-1][0]


@pytest.mark.parametrize(
    ("vocabulary", "early_stopping", "length_penalty", "shape"),
    [
        (4, "false", 1.0, {}),
        (3, "true", 1.0, {"temperature": 1.6}),
        (3, "never", 0.5, {"temperature": 0.7}),
        (5, "false", 1.0, {"temperature": 1.4, "top_k": 3}),
        (5, "false", 0.0, {"top_p": 0.7}),
        (4, "never", 2.0, {"min_p": 0.4}),
        (5, "true", -1.0, {"temperature": 0.8, "top_k": 4, "top_p": 0.6, "min_p": 0.1, "typical_p": 0.9}),
    ],
)
def test_searched_texts_follow_the_exact_distribution(
    tokenizer: TextTokenizer, vocabulary: int, early_stopping: str, length_penalty: float, shape: dict[str, float]
) -> None:
    """Two beams, three steps; a result is the list of all finished texts."""
    draws, beams, room = 1000, 2, 3
    options = decoding_options({"decoding": "beam_sample", "temperature": 1.0, "num_beams": beams, **shape})
    settings = beam.BeamSettings(beams, early_stopping=early_stopping, length_penalty=length_penalty)

    def finish(_: int, ids: Sequence[int]) -> str | None:
        return "eos" if ids[-1] == END else None

    searches = beam.beam_search(
        Table(vocabulary),
        [[1]] * draws,
        [room] * draws,
        filter_chain(options, tokenizer, [END]).filters,
        settings,
        [beam.DrawWithoutReplacement(sampling.stream(2, index, 0)) for index in range(draws)],
        finish,
    )
    counts = Counter(tuple(text.ids for text in one.finished) for _, one in searches if one.is_over)
    assert counts.total() == draws
    expected = searched_texts(vocabulary, beams, room, early_stopping, length_penalty, **shape)
    assert p_value(counts, expected) > 0.001
