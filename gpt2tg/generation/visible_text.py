"""The part of a growing text that can be shown: whole characters and no part of a stop string.

With `end_at_sentence`, only complete sentences are shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gpt2tg.checkpoint.text_stream import TextStream
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.decoding.stopping import cut_at_stop, held_back, with_marks
from gpt2tg.generation.sentences import LOOKED_BACK, last_sentence_end


class VisibleText:
    """A text that is being generated, and how much of it has been shown.

    Special tokens decode to nothing. A special token that a stop string names still ends the text.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        stop: Sequence[str] = (),
        keep_stop: bool = False,
        before: Sequence[int] = (),
        sentences_after: str | None = None,
    ) -> None:
        """Begin a text.

        Args:
            stop: the stop strings.
            keep_stop: whether the text includes the stop string that ends it.
            before: the prompt tokens.
            sentences_after: the prompt, if a text that is cut short must end with a complete sentence; else None.
        """
        self.shown = ""
        self.count = 0
        """The number of tokens pushed so far."""
        self.is_unfinished = False
        """Whether the text was cut short before any sentence was complete."""
        self._stop, marks = with_marks(stop, tokenizer.special)
        self._names = {ord(mark): tokenizer.special[token] for token, mark in marks.items()}
        self._stream = TextStream(tokenizer, before, marks)
        self._pending = ""  # decoded, but may be part of a longer character or of a stop string
        self._written = ""  # shown, or held back until the sentence is complete
        self._keep_stop = keep_stop
        self._prompt = sentences_after

    def push(self, token: int) -> str:
        """Add a token. Returns the text that can be shown now: often a word, sometimes nothing."""
        self.count += 1
        self._pending += self._stream.push(token)
        before_stop = cut_at_stop(self._pending, self._stop, keep=False)
        if before_stop != self._pending:
            return self._add(len(before_stop))
        held = max(held_back(self._pending, self._stop), len(self._pending) - last_character(self._pending))
        return self._add(len(self._pending) - held)

    def extend(self, tokens: Sequence[int]) -> None:
        """Add tokens that are shown only by `finish`: much faster than `push`. For texts without stop strings."""
        self.count += len(tokens)
        self._stream.extend(tokens)

    def finish(self, is_cut_short: bool = False) -> str:
        """End the text. Returns the rest of it, up to the stop string if it ends with one.

        Args:
            is_cut_short: whether neither the model nor a stop string ended it.
        """
        self._pending += self._stream.finish()
        before_stop, with_stop = (cut_at_stop(self._pending, self._stop, keep) for keep in (False, True))
        kept = with_stop[len(before_stop) :].translate(self._names) if self._keep_stop else ""
        self._written += self._without_marks(before_stop) + kept
        self._pending = ""
        if self._prompt is not None and is_cut_short:
            self._written, self.is_unfinished = complete_sentences(self._prompt, self._written)
        return self._show(len(self._written))

    def _add(self, length: int) -> str:
        """Move the first `length` pending characters to the text. Returns what can be shown now."""
        self._written += self._without_marks(self._pending[:length])
        self._pending = self._pending[length:]
        if self._prompt is None:
            return self._show(len(self._written))
        before = (self._prompt + self.shown)[-2 * LOOKED_BACK :]
        held_back = self._written[len(self.shown) :]
        end = last_sentence_end(before + held_back, len(before), is_all=False)
        return self._show(len(self.shown) + end - len(before))

    def _without_marks(self, text: str) -> str:
        return text.translate(dict.fromkeys(self._names))

    def _show(self, length: int) -> str:
        piece = self._written[len(self.shown) : length]
        self.shown += piece
        return piece


def complete_sentences(prompt: str, text: str) -> tuple[str, bool]:
    """Return a text up to the end of its last complete sentence, and False; the whole text and True if it has none.

    Args:
        prompt: the text before it.
    """
    end = last_sentence_end(prompt + text, len(prompt)) - len(prompt)
    return (text[:end], False) if end else (text, True)


def last_character(text: str) -> int:
    """Return the index at which the last, possibly incomplete character of a text begins.

    A character is an extended grapheme cluster (Unicode Standard Annex #29): a letter with its accents, an emoji with
    its skin tone or joined to another, both halves of a flag. White space is complete, so nothing is left after it.
    """
    if not text or text[-1].isspace():
        return len(text)
    if text.isascii():
        return len(text) - 1
    import regex  # takes longer to load than most texts take to need it

    *_, last = regex.finditer(r"\X", text)
    return int(last.start())


def in_pieces(text: str, longest: int = 1000) -> Iterator[str]:
    """Cut a text into pieces of whole characters, short enough that the system writes each at once."""
    while len(text) > longest:
        cut = last_character(text[:longest]) or longest
        yield text[:cut]
        text = text[cut:]
    yield text
