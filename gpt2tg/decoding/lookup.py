"""Prompt lookup: drafts for speculative decoding that are copied from the text (Saxena 2023).

Text repeats itself. If the last tokens occurred before, guess that the same tokens follow them again.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpt2tg.decoding.live_texts import LiveTexts
from gpt2tg.decoding.pace import PRICE, RECENT, Costs

# The sizes of the n-grams to look up at the end of the text; the longest match is used.
NGRAMS = (3, 2, 1)


class Guesser:
    """Guesses the next tokens of a text from what followed the same n-gram before.

    It estimates how often such guesses are right, and shortens or stops them accordingly. The estimate needs no actual
    guess: each new token shows whether one would have been right.
    """

    def __init__(self, ids: Sequence[int], longest: int) -> None:
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> the index after its last occurrence
        self._longest = longest
        self._chance = dict.fromkeys(NGRAMS, 0.5)  # by n: the probability that the same token follows again
        # The size of the longest n-gram at the end that occurred before, and the index after it; 0 if there is none.
        self._n = self._at = 0
        self.append(ids)

    def append(self, ids: Sequence[int]) -> None:
        """Add tokens to the text."""
        for token in ids:
            if self._n:
                self._chance[self._n] += RECENT * ((self._ids[self._at] == token) - self._chance[self._n])
            for n in NGRAMS:
                if len(self._ids) >= n:
                    self._after[tuple(self._ids[-n:])] = len(self._ids)
            self._ids.append(token)
            known = ((n, self._after.get(tuple(self._ids[-n:]), 0)) for n in NGRAMS)
            self._n, self._at = next((found for found in known if found[1]), (0, 0))

    @property
    def chance(self) -> float:
        """The probability that the first guess is right; 0 if there is none."""
        return self._chance[self._n] if self._n else 0.0

    def guess(self, limit: int, price: float = PRICE) -> list[int]:
        """Return up to `limit` tokens that may follow: those that are right with at least the probability `price`."""
        guess: list[int] = []
        chance, n = 1.0, self._n
        while n and len(guess) < min(limit, self._longest):
            chance *= self._chance[n]
            if chance < price:
                break
            # If the copied part reaches the end of the text, it starts again: the text is taken to be periodic.
            guess.append(self._ids[self._at + len(guess) % (len(self._ids) - self._at)])
            n = min(n + 1, max(NGRAMS))
        return guess


class PromptLookup:
    """A `Drafter` that copies its guesses from the texts, each from itself."""

    def __init__(self, prompts: Sequence[Sequence[int]], longest: int, costs: Costs) -> None:
        """
        Args:
            prompts: the prompt of each row.
            longest: the largest number of tokens to guess at once.
        """
        self.costs = costs
        self._guessers = [Guesser(prompt, longest) for prompt in prompts]
        self._known = [len(prompt) for prompt in prompts]

    def update(self, live: LiveTexts) -> list[float]:
        """Read what the texts have become. Returns for each row the probability that its first guess is right."""
        for row, text in enumerate(live.texts):
            self._guessers[row].append(text.ids[self._known[row] :])
            self._known[row] = len(text.ids)
        return [guesser.chance for guesser in self._guessers]

    def guess(self, live: LiveTexts, limits: Sequence[int]) -> list[list[int]]:
        """See `Drafter.guess`. A token that is right with a smaller probability than it costs is not guessed."""
        self.update(live)
        price = self.costs.price(len(limits))
        return [guesser.guess(limit, price) for guesser, limit in zip(self._guessers, limits, strict=True)]

    def select(self, rows: Sequence[int]) -> None:
        """See `Drafter.select`."""
        self._guessers = [self._guessers[row] for row in rows]
        self._known = [self._known[row] for row in rows]
