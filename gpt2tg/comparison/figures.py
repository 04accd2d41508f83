"""What can be counted in a set of texts, and how far two sets are apart.

Words are runs of letters and digits, apostrophes inside them included, and single marks, all in lower case; so the
figures of models with different tokenizers may be compared. Nothing here needs the model.
"""

from __future__ import annotations

import math
import random
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sacrebleu.metrics import BLEU

from gpt2tg.generation.generator import Sample

WORDS = re.compile(r"\w+(?:['\N{RIGHT SINGLE QUOTATION MARK}]\w+)*|[^\w\s]")

# Of a longer set, each text is held against so many others: self-BLEU rises with their number.
MOST_REFERENCES = 15

# Shorter phrases come back in any text; these numbers are those of Holtzman et al. (2020).
SHORTEST_LOOP = 2
ROUNDS_OF_A_LOOP = 3


@dataclass(frozen=True)
class TextFigures:
    """What is counted in one text; the prompt is not part of it. None is what a text is too short for."""

    words: tuple[str, ...]
    tokens: int
    logprob: float
    """Sum over the tokens, in nats, under the model itself."""
    distinct: tuple[float | None, float | None, float | None]
    """Share of its runs of 1, 2 and 3 words that are different from each other."""
    repeated: float | None
    """Share of its runs of 4 words that stood in it before."""
    is_loop: bool
    has_ended: bool
    self_bleu: float | None = None
    copied: int | None = None
    """Words of the longest run that stands in the training text."""


@dataclass(frozen=True)
class Figures:
    """The figures of a set of texts. None is what cannot be said of it."""

    texts: int
    tokens_per_second: float | None
    logprob: float | None
    """Mean log-probability of a token under the model itself, in nats."""
    perplexity: float | None
    distinct_1: float | None
    distinct_2: float | None
    distinct_3: float | None
    repetition: float | None
    """Share of the runs of 4 words that stood in the same text before."""
    loops: float
    """Share of texts that end in a loop."""
    self_bleu: float | None
    zipf: float | None
    length: float
    """Mean number of tokens."""
    ended: float
    """Share of texts that the model ended itself."""
    copied: float | None = None
    """Mean over the texts: words of the longest run that stands in the training text."""
    copied_most: int | None = None
    """The longest of these runs."""


# Figures by which texts are compared with human ones, and the smallest scale of each: a difference that nobody would
# notice counts little, even where human texts do not differ at all.
LEAST_SCALES = {
    "logprob": 0.05,
    "distinct_1": 0.01,
    "distinct_2": 0.01,
    "distinct_3": 0.01,
    "repetition": 0.01,
    "loops": 0.02,
    "self_bleu": 0.01,
    "zipf": 0.02,
    "length": 1.0,
}


def words_of(text: str) -> list[str]:
    """The words and marks of a text, in lower case."""
    return WORDS.findall(text.lower())


def text_figures(samples: Sequence[Sample], copied: Sequence[int] | None = None) -> list[TextFigures]:
    """Count in each of a set of texts.

    Args:
        copied: for each text, the words of its longest run that stands in the training text.
    """
    words = [words_of(sample.completion) for sample in samples]
    return [
        TextFigures(
            words=tuple(own),
            tokens=len(sample.ids),
            logprob=sample.logprob,
            distinct=(distinct(own, 1), distinct(own, 2), distinct(own, 3)),
            repeated=None if (share := distinct(own, 4)) is None else 1 - share,
            is_loop=ends_in_loop(own),
            has_ended=sample.finish_reason == "eos",
            self_bleu=score,
            copied=None if copied is None else copied[number],
        )
        for number, (sample, own, score) in enumerate(zip(samples, words, self_bleu(words), strict=True))
    ]


def distinct(words: Sequence[str], n: int) -> float | None:
    """distinct-n (Li et al. 2016) of one text: the share of its n-grams that are different from each other."""
    grams = list(zip(*(words[start:] for start in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else None


def ends_in_loop(words: Sequence[str]) -> bool:
    """Whether the last words are one phrase of at least two words three times in a row (Holtzman et al. 2020)."""
    return any(
        all(words[-back] == words[-back - period] for back in range(1, period * (ROUNDS_OF_A_LOOP - 1) + 1))
        for period in range(SHORTEST_LOOP, len(words) // ROUNDS_OF_A_LOOP + 1)
    )


def self_bleu(texts: Sequence[Sequence[str]]) -> list[float | None]:
    """Self-BLEU-4 (Zhu et al. 2018): BLEU of each text with the others of its set as references, from 0 to 1.

    A set of more than 16 texts is put in a random order, always the same, and each text is held against the 15 that
    follow it, so that sets of different sizes may be compared.
    """
    bleu = BLEU(effective_order=True, tokenize="none")
    order = list(range(len(texts)))
    random.Random(0).shuffle(order)
    lines = [" ".join(texts[number]) for number in order]
    scores: list[float | None] = [None] * len(texts)
    for place, number in enumerate(order):
        others = [*lines[place + 1 :], *lines[:place]][:MOST_REFERENCES]
        if others and lines[place]:
            scores[number] = bleu.sentence_score(lines[place], others).score / 100
    return scores


def zipf(texts: Sequence[Sequence[str]]) -> float | None:
    """Zipf's coefficient: minus the slope of the straight line through log frequency over log rank, least squares."""
    counts = sorted(Counter(word for words in texts for word in words).values(), reverse=True)
    if len(counts) < 2:
        return None
    ranks = [math.log(rank) for rank in range(1, len(counts) + 1)]
    slope = statistics.linear_regression(ranks, [math.log(count) for count in counts]).slope
    return max(0.0, -slope)  # where all words are equally frequent a minus would be left


def figures_of(texts: Sequence[TextFigures], seconds: float | None = None) -> Figures:
    """The figures of a set of at least one text.

    Args:
        seconds: how long it took to write them all.
    """
    tokens = sum(text.tokens for text in texts)
    logprob = sum(text.logprob for text in texts) / tokens if tokens else None
    copied = [text.copied for text in texts if text.copied is not None]
    return Figures(
        texts=len(texts),
        tokens_per_second=tokens / seconds if seconds else None,
        logprob=logprob,
        perplexity=None if logprob is None else math.exp(-logprob),
        distinct_1=_mean([text.distinct[0] for text in texts]),
        distinct_2=_mean([text.distinct[1] for text in texts]),
        distinct_3=_mean([text.distinct[2] for text in texts]),
        repetition=_mean([text.repeated for text in texts]),
        loops=sum(text.is_loop for text in texts) / len(texts),
        self_bleu=_mean([text.self_bleu for text in texts]),
        zipf=zipf([text.words for text in texts]),
        length=tokens / len(texts),
        ended=sum(text.has_ended for text in texts) / len(texts),
        copied=_mean(copied),
        copied_most=max(copied, default=None),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def differences(found: Figures, human: Figures, scales: Mapping[str, float]) -> dict[str, float]:
    """For each figure that both sets have, how far the first is from the second, with its sign, in units of scale."""
    return {
        name: (own - other) / scale
        for name, scale in scales.items()
        if (own := getattr(found, name)) is not None and (other := getattr(human, name)) is not None
    }


def distance(found: Figures, human: Figures, scales: Mapping[str, float]) -> float:
    """The mean of the absolute differences; infinite for texts of which nothing can be said."""
    values = differences(found, human, scales).values()
    return statistics.fmean(map(abs, values)) if values else math.inf


class Yardstick:
    """Human text to measure the distance of other texts from.

    The distance of a set of texts is the mean, over the figures of `LEAST_SCALES`, of the absolute difference from
    the human figure, each in units of its scale: its standard deviation over sets of `size` texts drawn from the
    human ones with replacement.
    """

    def __init__(self, texts: Sequence[TextFigures], size: int, resamples: int = 200) -> None:
        draw = random.Random(0)
        sets = [figures_of(draw.choices(texts, k=size)) for _ in range(resamples)]
        self.human = figures_of(texts)
        self.scales = {name: max(_spread(sets, name), least) for name, least in LEAST_SCALES.items()}
        self._texts = texts
        self._zipf: dict[int, float | None] = {}
        self.own_distance = statistics.fmean(self.distance(found) for found in sets)
        """The mean distance of those sets: what comes of chance alone."""

    def differences(self, found: Figures) -> dict[str, float]:
        """For each figure that both sets have, how far it is from the human one, with its sign, in units of scale."""
        return differences(found, replace(self.human, zipf=self._zipf_of_sets(found.texts)), self.scales)

    def distance(self, found: Figures) -> float:
        """Mean absolute difference; infinite for texts of which nothing can be said."""
        return distance(found, replace(self.human, zipf=self._zipf_of_sets(found.texts)), self.scales)

    def _zipf_of_sets(self, size: int) -> float | None:
        """Zipf's coefficient grows with the number of words: the human one of sets as small as the other one."""
        if size >= len(self._texts):
            return self.human.zipf
        if size not in self._zipf:
            draw = random.Random(0)
            sets = [draw.sample(self._texts, size) for _ in range(50)]
            self._zipf[size] = _mean([zipf([text.words for text in texts]) for texts in sets])
        return self._zipf[size]


def _spread(sets: Sequence[Figures], name: str) -> float:
    return statistics.pstdev([value for found in sets if (value := getattr(found, name)) is not None] or [0.0])
