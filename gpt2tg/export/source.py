"""A model to export: its weights, which are read once, and its tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gpt2tg.checkpoint.chat_template import stored_template
from gpt2tg.checkpoint.checkpoint import Checkpoint
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.checkpoint.tokenizer_loading import unused_ids
from gpt2tg.checkpoint.weights import Weights


@dataclass(frozen=True)
class Source:
    """A model to export."""

    checkpoint: Checkpoint
    weights: Weights
    tokenizer: TextTokenizer
    save_tokenizer: Callable[[Path], None]
    """Writes the tokenizer's files into a directory."""

    @cached_property
    def used_ids(self) -> list[int]:
        """The ids that have a token or end a text, in ascending order.

        Rows of the embedding beyond them only pad it to a round size, and are left out of every export.
        """
        shape = self.checkpoint.shape
        unused = set(unused_ids(self.tokenizer, shape.vocab_size, shape.end_ids))
        return [number for number in range(shape.vocab_size) if number not in unused]

    def chat_template(self) -> str | None:
        """Return the template that makes a prompt of a conversation, if the tokenizer's files hold one."""
        return stored_template(self.checkpoint.directory)
