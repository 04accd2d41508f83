"""Prompt lookup (Saxena 2023; speculative decoding of Leviathan et al. 2023 with the text itself as the guesser).

Text repeats itself. Where its last tokens stood before, what followed them then is guessed to follow again, and the
model reads the guess in one go: the weights are read once for several tokens. Every token is still chosen from the
model's own logits; a guess that the choice does not confirm is taken back. The text is what it is without guessing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor

from gpt2tg.decoding.interface import Filter, Finish, Rows, Text, Token, apply, is_left, not_finite
from gpt2tg.decoding.sampling import Choose

# How many tokens at the end of the text have to have stood there before, the most telling first.
NGRAMS = (3, 2, 1)

# What it takes to read one more token, in steps of one token: no guess is made that is right less often.
PRICE = 0.1

# How much one guess counts in what is expected of the next.
RECENT = 0.1


class ExtensibleRows(Rows, Protocol):
    """Rows that can read several tokens at once, and take tokens back, while there is only one of them."""

    def extend(self, tokens: Sequence[int]) -> Tensor:
        """Append tokens to the only row. Returns (T, V) logits of the token after each."""

    def take_back(self, count: int) -> None:
        """Forget the last tokens of the only row."""


class Guesser:
    """Guesses what follows from what followed before, as far as such guesses have come true in the text.

    Whether a guess would have come true is seen from the text, made or not: so nothing is lost by making none.
    """

    def __init__(self, ids: Sequence[int], longest: int) -> None:
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> where the token after its last occurrence stands
        self._longest = longest
        self._chance = dict.fromkeys(NGRAMS, 0.5)  # for each n, that what followed the n-gram follows again
        self._n = self._at = 0  # the longest n-gram at the end that stood there before, and what followed; 0 if none
        self.append(ids)

    def append(self, ids: Sequence[int]) -> None:
        """Note tokens of the text. Those at its very end have nothing after them yet, and are noted by the next."""
        for token in ids:
            if self._n:
                self._chance[self._n] += RECENT * ((self._ids[self._at] == token) - self._chance[self._n])
            for n in NGRAMS:
                if len(self._ids) >= n:
                    self._after[tuple(self._ids[-n:])] = len(self._ids)
            self._ids.append(token)
            known = ((n, self._after.get(tuple(self._ids[-n:]), 0)) for n in NGRAMS)
            self._n, self._at = next((found for found in known if found[1]), (0, 0))

    def guess(self, room: int) -> list[int]:
        """The tokens that may follow, at most `room` of them, while all of them being right is worth its price."""
        guess: list[int] = []
        chance, n = 1.0, self._n
        while n and len(guess) < min(room, self._longest):
            chance *= self._chance[n]
            if chance < PRICE:
                break
            # Beyond the end of the text it is taken to go on as it began.
            guess.append(self._ids[self._at + len(guess) % (len(self._ids) - self._at)])
            n = min(n + 1, max(NGRAMS))
        return guess


def decode_with_lookup(
    rows: ExtensibleRows,
    prompt: Sequence[int],
    filters: Sequence[Filter],
    choose: Choose,
    finish: Finish,
    room: int,
    longest: int,
) -> Iterator[Token]:
    """Write one sample as `sampling.decode` does, several tokens at a time where the text repeats itself.

    Args:
        room: how many new tokens there may be.
        longest: how many tokens are guessed at most.

    Raises:
        NotFiniteError: the model's logits are no numbers.
    """
    text = Text.after(prompt)
    guesser, guess = Guesser(prompt, longest), list[int]()
    logits = rows.start([prompt])  # (1, V)
    while True:
        confirmed = 0
        # (1, V) logits after the text; the next of them counts only if the token before it was guessed rightly.
        for following, logprobs in zip(logits.unsqueeze(1), logits.log_softmax(dim=1), strict=True):
            if math.isnan(logprobs[0]):  # as all the others then
                raise not_finite(text.new_count + 1)
            filtered = apply(filters, following, [text])
            choice = choose(filtered, [0])
            if not is_left(filtered, choice)[0]:
                yield Token.none_left(0)
                return
            token = int(choice)
            text.append(token)
            reason = finish(0, text.new)
            yield Token(0, token, float(logprobs[token]), reason)
            if reason is not None:
                return
            if confirmed == len(guess) or token != guess[confirmed]:
                break
            confirmed += 1
        rows.take_back(len(guess) - confirmed)
        guesser.append(text.ids[-confirmed - 1 :])
        # The token after the last guess needs room too.
        guess = guesser.guess(room - text.new_count - 1)
        logits = rows.extend([text.ids[-1], *guess])
