"""Generation beyond the model's context length: when a row is full, the end of its text is read again.

GPT-2 encodes the position of a token in its keys and values, so that a full KV cache cannot be shifted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from gpt2tg.engine.contexts import new_context
from gpt2tg.engine.model import GPT2


def windows(prompt: int, length: int, positions: int) -> Iterator[tuple[int, int]]:
    """Yield the windows that `SlidingRows` uses while a text grows.

    Args:
        prompt: tokens of the text at the beginning.
        length: tokens of the text at the end.
        positions: the model's context length.

    Yields:
        Start and end of each window. A token is predicted from the first window that reaches up to it.
    """
    start = max(0, prompt - positions)
    while start + positions < length:
        yield start, start + positions
        start += positions - positions // 2
    yield start, length


class SlidingRows:
    """Rows of any length, of which the model sees the last tokens.

    When a row has filled all positions, its last half is read again from position 0. Each row does so at its own time,
    so that its text does not depend on the other rows.
    """

    def __init__(self, model: GPT2, keep_hidden: bool = False) -> None:
        """
        Args:
            keep_hidden: whether `hidden` will be called.
        """
        self._positions = model.shape.n_positions
        self._context = new_context(model, self._positions, keep_hidden)
        self._texts: list[list[int]] = []

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read the last tokens of each prompt, as many as there are positions. Returns (B, V) logits."""
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
        """Keep these rows, in this order. A row may be named more than once; one that is not named is dropped."""
        self._texts = [list(self._texts[row]) for row in rows]
        self._context.select(rows)

    def hidden(self) -> list[Tensor]:
        """See `Context.hidden`."""
        return self._context.hidden()
