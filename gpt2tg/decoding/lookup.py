"""Prompt lookup decoding: speculative decoding (Leviathan et al. 2023) with drafts copied from the text (Saxena 2023).

Text repeats itself. If the last tokens occurred before, guess that the same tokens follow them again, and read the
whole guess in one forward pass: the weights are then read once for several tokens. Every token is still chosen from the
model's own logits, and tokens after the first wrong guess are taken back. The result is the same as without guessing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor

from gpt2tg.decoding.interface import Filter, Finish, Rows, Text, Token, apply_filters, is_allowed, not_finite_error
from gpt2tg.decoding.sampling import Choose

# The sizes of the n-grams to look up at the end of the text; the longest match is used.
NGRAMS = (3, 2, 1)

# The cost of reading one more token in the same forward pass, as a share of a decode step. A token that is right with a
# smaller probability is not guessed.
PRICE = 0.1

# The weight of the newest observation in the moving average of how often guesses are right.
RECENT = 0.1


class ExtensibleRows(Rows, Protocol):
    """Rows that, while there is only one, can read several tokens at once and remove tokens."""

    def extend(self, tokens: Sequence[int]) -> Tensor:
        """Append tokens to the only row. Returns (T, V) logits of the token after each."""

    def take_back(self, count: int) -> None:
        """Remove the last tokens of the only row."""


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

    def guess(self, limit: int) -> list[int]:
        """Return up to `limit` tokens that may follow: as many as are likely enough to be worth reading."""
        guess: list[int] = []
        chance, n = 1.0, self._n
        while n and len(guess) < min(limit, self._longest):
            chance *= self._chance[n]
            if chance < PRICE:
                break
            # If the copied part reaches the end of the text, it starts again: the text is taken to be periodic.
            guess.append(self._ids[self._at + len(guess) % (len(self._ids) - self._at)])
            n = min(n + 1, max(NGRAMS))
        return guess


def decode_with_lookup(
    rows: ExtensibleRows,
    prompt: Sequence[int],
    filters: Sequence[Filter],
    choose: Choose,
    finish: Finish,
    max_new_tokens: int,
    longest: int,
) -> Iterator[Token]:
    """Generate one sample as `sampling.decode` does, with several tokens per forward pass where the text repeats.

    Args:
        max_new_tokens: the limit that `finish` enforces. Guesses stay within it, and so within the KV cache.
        longest: the largest number of tokens to guess at once.

    Raises:
        NotFiniteError: the model's logits are not finite.
    """
    text = Text.after(prompt)
    guesser, guess = Guesser(prompt, longest), list[int]()
    logits = rows.start([prompt])  # (1, V)
    while True:
        confirmed = 0
        # (1, V) logits after each token read. They count as long as the guessed tokens before them are right.
        for following, logprobs in zip(logits.unsqueeze(1), logits.log_softmax(dim=1), strict=True):
            token = _next_token(following, logprobs, text, filters, choose, finish)
            yield token
            if token.finish_reason is not None:
                return
            if confirmed == len(guess) or token.id != guess[confirmed]:
                break
            confirmed += 1
        rows.take_back(len(guess) - confirmed)
        guesser.append(text.ids[-confirmed - 1 :])
        # One less, since the forward pass also yields the token after the last guess.
        guess = guesser.guess(max_new_tokens - text.new_count - 1)
        logits = rows.extend([text.ids[-1], *guess])


def _next_token(
    logits: Tensor, logprobs: Tensor, text: Text, filters: Sequence[Filter], choose: Choose, finish: Finish
) -> Token:
    """Choose the token after a text from (1, V) logits and append it; `logprobs` (V,) are those of the model."""
    if math.isnan(logprobs[0]):  # then the whole row is NaN
        raise not_finite_error(text.new_count + 1)
    filtered = apply_filters(filters, logits, [text])
    choice = choose(filtered, [0])
    if not is_allowed(filtered, choice)[0]:
        return Token.all_banned(0)
    token = int(choice)
    text.append(token)
    return Token(0, token, float(logprobs[token]), finish(0, text.new))
