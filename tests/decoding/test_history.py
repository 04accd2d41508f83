"""Incremental token counts and n-grams against a recount."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from gpt2tg.decoding import filters
from gpt2tg.decoding.history import History
from gpt2tg.decoding.interface import Text

VOCABULARY = 7

FILTERS: dict[str, Callable[[Tensor, Sequence[Sequence[int]]], Tensor]] = {
    **{
        f"repetition {window}": lambda x, h, w=window: filters.repetition_penalty(x, h, 1.3, w)
        for window in (None, 1, 4, 50)
    },
    **{
        f"presence and frequency {window}": lambda x, h, w=window: filters.presence_and_frequency(x, h, 0.3, 0.7, w)
        for window in (None, 1, 4, 50)
    },
    **{f"n-grams of {n}": lambda x, h, n=n: filters.no_repeat_ngram(x, h, n) for n in (1, 2, 3, 5)},
}


def by_hand(history: Sequence[int], window: int | None) -> list[int]:
    counts = Counter(history[-window:] if window else history)
    return [counts[token] for token in range(VOCABULARY)]


def followers_by_hand(history: Sequence[int], size: int) -> set[int]:
    grams = [tuple(history[start : start + size]) for start in range(len(history) - size + 1)]
    return {gram[-1] for gram in grams if gram[:-1] == tuple(history[len(history) - size + 1 :])}


@pytest.mark.parametrize("pieces", [(0, 1), (1, 1), (9, 1), (0, 3), (40, 17)])
def test_cached_counts_and_ngrams_equal_a_recount(pieces: tuple[int, int]) -> None:
    """One token at a time, and several at once, as prompt lookup appends them."""
    prompt, step = pieces
    chance = random.Random(prompt)
    history = History(chance.choices(range(VOCABULARY), k=prompt))
    for _ in range(60):
        for window in (None, 1, 4, 50):
            counts = history.counts(VOCABULARY, torch.device("cpu"), window)
            assert counts.tolist() == by_hand(list(history), window)
        for size in (2, 3, 4):
            followers = history.followers(size)
            assert set(followers) == followers_by_hand(list(history), size)
        history.extend(chance.choices(range(VOCABULARY), k=step))


def test_diverging_copies_do_not_affect_each_other() -> None:
    """As in beam search: of each step some texts go on once, some twice, some not at all."""
    chance = random.Random(3)
    texts = [Text.after([1, 2, 1, 2])]
    for _ in range(50):
        for text in texts:
            history = History.of(text.ids)
            assert history.counts(VOCABULARY, torch.device("cpu"), 5).tolist() == by_hand(list(history), 5)
            assert set(history.followers(2)) == followers_by_hand(list(history), 2)
        texts = [chance.choice(texts).continued(chance.randrange(VOCABULARY)) for _ in range(4)]


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_cached_counts_give_bit_equal_results(name: str, dtype: torch.dtype) -> None:
    chance, change = random.Random(1), FILTERS[name]
    histories = [History(chance.choices(range(VOCABULARY), k=length)) for length in (0, 3, 30)]
    for step in range(30):
        logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(step)).to(dtype)
        assert torch.equal(change(logits, histories), change(logits, [list(history) for history in histories]))
        for history in histories:
            history.append(chance.randrange(VOCABULARY))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_growing_text_is_filtered_as_in_transformers(size: int) -> None:
    chance = random.Random(size)
    theirs = [RepetitionPenaltyLogitsProcessor(1.7), NoRepeatNGramLogitsProcessor(size)]
    histories = [History(chance.choices(range(30), k=5)) for _ in range(3)]
    for step in range(80):
        logits = torch.randn(3, 30, generator=torch.Generator().manual_seed(step))
        ours = filters.no_repeat_ngram(filters.repetition_penalty(logits, histories, 1.7, None), histories, size)
        expected = logits.clone()
        for processor in theirs:
            expected = processor(torch.tensor(histories), expected)
        assert torch.equal(ours, expected)
        for history in histories:
            history.append(chance.randrange(30))


class Counted(History):
    """A history that counts how many of its ids are read."""

    looked_at = 0

    def __getitem__(self, place: object) -> object:
        found = super().__getitem__(place)  # type: ignore[call-overload]
        Counted.looked_at += len(found) if isinstance(place, slice) else 1
        return found

    def __iter__(self) -> object:
        Counted.looked_at += len(self)
        return super().__iter__()


@pytest.mark.parametrize("name", FILTERS)
def test_cost_per_step_does_not_grow_with_the_text(name: str) -> None:
    looked_at = []
    for length in (500, 6000):
        history = Counted(random.Random(1).choices(range(VOCABULARY), k=length))
        FILTERS[name](torch.zeros(1, VOCABULARY), [history])
        Counted.looked_at = 0
        for token in (1, 2, 3):
            history.append(token)
            FILTERS[name](torch.zeros(1, VOCABULARY), [history])
        looked_at.append(Counted.looked_at)
    assert looked_at[0] == looked_at[1] <= 3 * 10
