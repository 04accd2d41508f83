"""What of a growing text may be shown: whole characters, and nothing of a stop string."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from gpt2tg.decoding.stopping import cut_at_stop, held_back, with_marks
from gpt2tg.engine.tokenizer import TextStream, TextTokenizer

ZERO_WIDTH_JOINER = "\u200d"


def completion(
    tokenizer: TextTokenizer, before: Sequence[int], ids: Sequence[int], stop: Sequence[str], keep_stop: bool
) -> str:
    """The text that ids add to that of the ids before them, up to a stop string."""
    visible = VisibleText(tokenizer, stop, keep_stop, before)
    for token in ids:
        visible.push(token)
    visible.finish()
    return visible.shown


class VisibleText:
    """One text while it is being written, and how far it has been shown.

    Special tokens leave no trace in it. One that is named in a stop string nevertheless ends the text.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        stop: Sequence[str] = (),
        keep_stop: bool = False,
        before: Sequence[int] = (),
    ) -> None:
        """`before` are the tokens that the text is written to."""
        self.shown = ""
        self.count = 0
        """Tokens pushed so far."""
        self._stop, marks = with_marks(stop, tokenizer.special)
        self._names = {ord(mark): tokenizer.special[token] for token, mark in marks.items()}
        self._stream = TextStream(tokenizer, before, marks)
        self._pending = ""
        self._keep_stop = keep_stop

    def push(self, token: int) -> str:
        """The text that may be shown now that this token has come; often a word, sometimes nothing."""
        self.count += 1
        self._pending += self._stream.push(token)
        before_stop = cut_at_stop(self._pending, self._stop, keep=False)
        if before_stop != self._pending:
            return self._show(len(before_stop))
        held = max(held_back(self._pending, self._stop), len(self._pending) - last_character(self._pending))
        return self._show(len(self._pending) - held)

    def finish(self) -> str:
        """The rest of the text, up to the stop string where it ends with one."""
        self._pending += self._stream.finish()
        before_stop, with_stop = (cut_at_stop(self._pending, self._stop, keep) for keep in (False, True))
        kept = with_stop[len(before_stop) :].translate(self._names) if self._keep_stop else ""
        self._pending = before_stop + kept
        return self._show(len(self._pending))

    def _show(self, length: int) -> str:
        piece, self._pending = self._pending[:length], self._pending[length:]
        piece = piece.translate(dict.fromkeys(self._names))
        self.shown += piece
        return piece


def last_character(text: str) -> int:
    """Where the last character of a text begins, as a reader counts characters.

    A letter and its accents are one, so are an emoji with its skin tone or joined to another, and the two halves of
    a flag. More may come to it; white space and what stands before it is complete.
    """
    if not text or text[-1].isspace():
        return len(text)
    start = len(text) - 1
    while start > 0 and _belongs_to_the_one_before(text, start):
        start -= 1
    return start


def _belongs_to_the_one_before(text: str, position: int) -> bool:
    here, before = text[position], text[position - 1]
    return (
        unicodedata.category(here) in ("Mn", "Mc", "Me")
        or ZERO_WIDTH_JOINER in (here, before)
        or "\U0001f3fb" <= here <= "\U0001f3ff"  # skin tones
        or (_is_half_a_flag(here) and _is_half_a_flag(before))
    )


def _is_half_a_flag(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"
