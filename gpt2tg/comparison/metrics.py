"""Metrics of generated or human text: diversity, repetition, length, perplexity.

Words are counted, not tokens, so that models with different tokenizers can be compared. A word is a run of letters and
digits, with the apostrophes inside it, or a single punctuation mark, in lower case. Nothing here runs the model.
"""

from __future__ import annotations

import math
import random
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sacrebleu.metrics.bleu import BLEU

from gpt2tg.generation.generator import Sample
from gpt2tg.inspection.perplexity import perplexity

WORDS = re.compile(r"\w+(?:['\N{RIGHT SINGLE QUOTATION MARK}]\w+)*|[^\w\s]")

# Self-BLEU rises with the number of references, so every text of a larger set gets this many.
MAX_BLEU_REFERENCES = 15

# A loop is a phrase of at least 2 words that comes 3 times in a row, as in Holtzman et al. (2020).
MIN_LOOP_WORDS = 2
LOOP_ROUNDS = 3


@dataclass(frozen=True)
class TextMetrics:
    """The metrics of one text without its prompt. None marks a metric that needs a longer text."""

    words: tuple[str, ...]
    tokens: int
    logprob: float
    """Sum over the tokens, in nats, under the model itself."""
    distinct: tuple[float | None, float | None, float | None]
    """distinct-1, distinct-2 and distinct-3."""
    repeated: float | None
    """Share of its word 4-grams that occurred earlier in the same text."""
    is_loop: bool
    has_ended: bool
    """Whether it ends with the end-of-text token."""
    self_bleu: float | None = None
    copied: int | None = None
    """Length in words of the longest run copied from the training text."""


@dataclass(frozen=True)
class SetMetrics:
    """The metrics of a set of texts. None marks a metric that these texts do not have."""

    texts: int
    tokens_per_second: float | None
    logprob: float | None
    """Mean log-probability of a token under the model itself, in nats."""
    perplexity: float | None
    distinct_1: float | None
    distinct_2: float | None
    distinct_3: float | None
    repetition: float | None
    """Share of word 4-grams that occurred earlier in the same text, mean over the texts."""
    loops: float
    """Share of texts that end in a loop."""
    self_bleu: float | None
    zipf: float | None
    length: float
    """Mean number of tokens."""
    ended: float
    """Share of texts that the model ended with the end-of-text token."""
    copied: float | None = None
    """Length in words of the longest run copied from the training text, mean over the texts."""
    copied_most: int | None = None
    """The longest of these runs."""


def split_words(text: str) -> list[str]:
    """Return the words and punctuation marks of a text, in lower case."""
    return WORDS.findall(text.lower())


def text_metrics(samples: Sequence[Sample], copied: Sequence[int] | None = None) -> list[TextMetrics]:
    """Return the metrics of each text in a set.

    Args:
        copied: for each text, the length in words of the longest run copied from the training text.
    """
    words = [split_words(sample.completion) for sample in samples]
    return [
        TextMetrics(
            words=tuple(own),
            tokens=len(sample.ids),
            logprob=sample.logprob,
            distinct=(distinct_n(own, 1), distinct_n(own, 2), distinct_n(own, 3)),
            repeated=None if (share := distinct_n(own, 4)) is None else 1 - share,
            is_loop=ends_in_loop(own),
            has_ended=sample.finish_reason == "eos",
            self_bleu=score,
            copied=None if copied is None else copied[number],
        )
        for number, (sample, own, score) in enumerate(zip(samples, words, self_bleu(words), strict=True))
    ]


def distinct_n(words: Sequence[str], n: int) -> float | None:
    """Return distinct-n of one text (Li et al. 2016): the number of different n-grams over the number of n-grams."""
    grams = list(zip(*(words[start:] for start in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else None


def ends_in_loop(words: Sequence[str]) -> bool:
    """Whether a text ends with one phrase of at least two words, three times in a row (Holtzman et al. 2020)."""
    return any(
        all(words[-back] == words[-back - period] for back in range(1, period * (LOOP_ROUNDS - 1) + 1))
        for period in range(MIN_LOOP_WORDS, len(words) // LOOP_ROUNDS + 1)
    )


def self_bleu(texts: Sequence[Sequence[str]]) -> list[float | None]:
    """Return the self-BLEU-4 of each text (Zhu et al. 2018): its BLEU with other texts of the set as references.

    Scores run from 0 to 1. At most 15 references are used, so that sets of different sizes stay comparable: the texts
    are shuffled with a fixed seed, and each is compared with the 15 that follow it.
    """
    bleu = BLEU(effective_order=True, tokenize="none")
    order = list(range(len(texts)))
    random.Random(0).shuffle(order)
    lines = [" ".join(texts[number]) for number in order]
    scores: list[float | None] = [None] * len(texts)
    for place, number in enumerate(order):
        others = [*lines[place + 1 :], *lines[:place]][:MAX_BLEU_REFERENCES]
        if others and lines[place]:
            scores[number] = bleu.sentence_score(lines[place], others).score / 100
    return scores


def zipf_coefficient(texts: Sequence[Sequence[str]]) -> float | None:
    """Return the Zipf coefficient of a set: the negative slope of log word frequency over log rank, by least squares.

    None if the texts have fewer than two different words.
    """
    counts = sorted(Counter(word for words in texts for word in words).values(), reverse=True)
    if len(counts) < 2:
        return None
    ranks = [math.log(rank) for rank in range(1, len(counts) + 1)]
    slope = statistics.linear_regression(ranks, [math.log(count) for count in counts]).slope
    return max(0.0, -slope)  # equally frequent words would give -0.0


def set_metrics(texts: Sequence[TextMetrics], seconds: float | None = None) -> SetMetrics:
    """Return the metrics of a set of at least one text.

    Args:
        seconds: the time it took to generate the whole set.
    """
    tokens = sum(text.tokens for text in texts)
    logprob = sum(text.logprob for text in texts) / tokens if tokens else None
    copied = [text.copied for text in texts if text.copied is not None]
    return SetMetrics(
        texts=len(texts),
        tokens_per_second=tokens / seconds if seconds else None,
        logprob=logprob,
        perplexity=None if logprob is None else perplexity(-logprob),
        distinct_1=mean_of_known([text.distinct[0] for text in texts]),
        distinct_2=mean_of_known([text.distinct[1] for text in texts]),
        distinct_3=mean_of_known([text.distinct[2] for text in texts]),
        repetition=mean_of_known([text.repeated for text in texts]),
        loops=sum(text.is_loop for text in texts) / len(texts),
        self_bleu=mean_of_known([text.self_bleu for text in texts]),
        zipf=zipf_coefficient([text.words for text in texts]),
        length=tokens / len(texts),
        ended=sum(text.has_ended for text in texts) / len(texts),
        copied=mean_of_known(copied),
        copied_most=max(copied, default=None),
    )


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are not None, or None if there are none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
