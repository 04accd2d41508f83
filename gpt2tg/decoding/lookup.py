"""Prompt lookup (Saxena 2023; speculative decoding of Leviathan et al. 2023 with the text itself as the guesser).

Text repeats itself. Where its last tokens stood before, what followed them then is guessed to follow again, and the
model reads the guess in one go: the weights are read once for several tokens. Every token is still chosen from the
model's own logits; a guess that the choice does not confirm is taken back. The text is what it is without guessing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor

from gpt2tg.decoding.interface import Filter, Finish, Rows, Text, Token, apply, require_finite
from gpt2tg.decoding.sampling import Choose

# How many tokens at the end of the text have to have stood there before, the most telling first.
NGRAMS = (3, 2, 1)

# After a guess that failed from its first token on, so many tokens are written without one; doubled each time.
FIRST_PAUSE, LONGEST_PAUSE = 1, 8


class ExtensibleRows(Rows, Protocol):
    """Rows that can read several tokens at once, and take tokens back, while there is only one of them."""

    def extend(self, tokens: Sequence[int]) -> Tensor:
        """Append tokens to the only row. Returns (T, V) logits of the token after each."""

    def take_back(self, count: int) -> None:
        """Forget the last tokens of the only row."""


class Guesser:
    """Guesses what follows from what followed before, and learns from its luck how far to guess."""

    def __init__(self, ids: Sequence[int], longest: int) -> None:
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> where the token after its last occurrence stands
        self._longest = self._length = longest
        self._pause = self._waiting = 0
        self.append(ids)

    def append(self, ids: Sequence[int]) -> None:
        """Note tokens of the text. Those at its very end have nothing after them yet, and are noted by the next."""
        for token in ids:
            for n in NGRAMS:
                if len(self._ids) >= n:
                    self._after[tuple(self._ids[-n:])] = len(self._ids)
            self._ids.append(token)

    def guess(self, room: int) -> list[int]:
        """The tokens that may follow, at most `room` of them; none where nothing is known or luck is out."""
        if self._waiting:
            self._waiting -= 1
            return []
        for n in NGRAMS:
            at = self._after.get(tuple(self._ids[-n:]))
            if at is not None:
                return self._ids[at : at + min(room, self._length)]
        return []

    def learn(self, guessed: int, confirmed: int) -> None:
        """Guess farther after a guess that was right to its end, less far after others, not at all for a while after
        one that was wrong from its beginning."""
        if not guessed:
            return
        if confirmed == guessed:
            self._length = min(self._longest, max(self._length, 2 * guessed))
        else:
            self._length = min(self._longest, max(1, 2 * confirmed))
        self._pause = 0 if confirmed else min(LONGEST_PAUSE, max(FIRST_PAUSE, 2 * self._pause))
        self._waiting = self._pause


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
    ids = list(prompt)
    text = Text(ids, len(prompt))
    guesser, guess = Guesser(ids, longest), list[int]()
    logits = rows.start([prompt])  # (1, V)
    while True:
        confirmed = 0
        # (1, V) logits after the text; the next of them counts only if the token before it was guessed rightly.
        for following in logits.split(1):
            require_finite(following, len(text.new) + 1)
            token = int(choose(apply(filters, following, [text]), [0]))
            logprob = float(following.log_softmax(dim=1)[0, token])
            ids.append(token)
            reason = finish(0, text.new)
            yield Token(0, token, logprob, reason)
            if reason is not None:
                return
            if confirmed == len(guess) or token != guess[confirmed]:
                break
            confirmed += 1
        rows.take_back(len(guess) - confirmed)
        guesser.learn(len(guess), confirmed)
        guesser.append(ids[-confirmed - 1 :])
        # The token after the last guess needs room too.
        guess = guesser.guess(room - len(text.new) - 1)
        logits = rows.extend([ids[-1], *guess])
