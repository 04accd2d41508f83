"""Texts that go on beyond the model's positions: where a row is full, the end of its text is read anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from gpt2tg.engine.model import GPT2


def windows(prompt: int, length: int, positions: int) -> Iterator[tuple[int, int]]:
    """What `SlidingRows` sees one after the other while a text grows from `prompt` tokens to `length`.

    Yields:
        Start and end of each window. A token follows from the first window that reaches up to its place.
    """
    start = max(0, prompt - positions)
    while start + positions < length:
        yield start, start + positions
        start += positions - positions // 2
    yield start, length


class SlidingRows:
    """Rows of any length, of which the model sees a window.

    GPT-2 knows a token's place by its position, so that a cache cannot simply be shifted. A row that has filled all
    positions goes on with the second half of them, read again from position 0. Each row does so in its own time,
    and its text depends on nothing but itself.
    """

    def __init__(self, model: GPT2, keep_hidden: bool = False) -> None:
        self._positions = model.shape.n_positions
        self._context = model.context(self._positions, keep_hidden)
        self._texts: list[list[int]] = []

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read the last tokens of the prompts, as many as there are positions. Returns (B, V) logits."""
        self._texts = [list(prompt) for prompt in prompts]
        return self._context.start([text[-self._positions :] for text in self._texts])

    def step(self, tokens: Tensor) -> Tensor:
        """Append (B,) tokens. Returns (B, V) logits."""
        full = [row for row, length in enumerate(self._context.lengths) if length == self._positions]
        if full:
            self._context.read({row: self._texts[row][-(self._positions // 2) :] for row in full})
        for text, token in zip(self._texts, tokens.tolist(), strict=True):
            text.append(token)
        return self._context.step(tokens)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may be named more than once."""
        self._texts = [list(self._texts[row]) for row in rows]
        self._context.select(rows)

    def hidden(self) -> list[Tensor]:
        """For each row, the final states of the tokens that the last `start` or `step` read. Each (T, E)."""
        return self._context.hidden()
