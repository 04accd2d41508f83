"""What of a growing text may be shown: whole characters, nothing of a stop string, and complete sentences alone where
only these are wanted."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

from gpt2tg.checkpoint.text_stream import TextStream
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.decoding.stopping import cut_at_stop, held_back, with_marks
from gpt2tg.generation.sentences import LOOKED_BACK, last_sentence_end

# Zero-width joiner and non-joiner.
JOINERS = frozenset("\u200c\u200d")

# The combining class of the sign that joins two consonants.
VIRAMA = 9


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
        sentences_after: str | None = None,
    ) -> None:
        """Begin a text.

        Args:
            before: the tokens that the text is written to.
            sentences_after: the prompt, where a text that is cut short shall end with a complete sentence.
        """
        self.shown = ""
        self.count = 0
        """Tokens pushed so far."""
        self.is_unfinished = False
        """Whether the text was cut short before any sentence was complete."""
        self._stop, marks = with_marks(stop, tokenizer.special)
        self._names = {ord(mark): tokenizer.special[token] for token, mark in marks.items()}
        self._stream = TextStream(tokenizer, before, marks)
        self._pending = ""  # may become part of a longer character, or of a stop string
        self._written = ""  # shown, or held back until its sentence is complete
        self._keep_stop = keep_stop
        self._prompt = sentences_after

    def push(self, token: int) -> str:
        """The text that may be shown now that this token has come; often a word, sometimes nothing."""
        self.count += 1
        self._pending += self._stream.push(token)
        before_stop = cut_at_stop(self._pending, self._stop, keep=False)
        if before_stop != self._pending:
            return self._add(len(before_stop))
        held = max(held_back(self._pending, self._stop), len(self._pending) - last_character(self._pending))
        return self._add(len(self._pending) - held)

    def finish(self, is_cut_short: bool = False) -> str:
        """The rest of the text, up to the stop string where it ends with one.

        Args:
            is_cut_short: whether it had to end where it stands, and neither the model nor a stop string ended it.
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
        """So much more of the text is known. Returns what may be shown of it."""
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
    """Return a text up to the end of its last complete sentence, and whether there is none: then it is all returned.

    Args:
        prompt: what stands before the text.
    """
    end = last_sentence_end(prompt + text, len(prompt)) - len(prompt)
    return (text[:end], False) if end else (text, True)


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


def in_pieces(text: str, longest: int = 1000) -> Iterator[str]:
    """Cut a text into pieces of whole characters, so short that the system writes each in one go."""
    while len(text) > longest:
        cut = last_character(text[:longest]) or longest
        yield text[:cut]
        text = text[cut:]
    yield text


def _belongs_to_the_one_before(text: str, position: int) -> bool:
    here, before = text[position], text[position - 1]
    return bool(
        unicodedata.category(here) in ("Mn", "Mc", "Me")
        or JOINERS.intersection((here, before))
        or "\U0001f3fb" <= here <= "\U0001f3ff"  # skin tones
        or "\U000e0020" <= here <= "\U000e007f"  # the letters of a region, as in the flag of Wales
        or (_is_half_a_flag(here) and _is_half_a_flag(before))
        or (unicodedata.combining(before) == VIRAMA and unicodedata.category(here) == "Lo")  # joined in Indic scripts
        or "\u1160" <= here <= "\u11ff"  # later parts of a Korean syllable
        or ("\u1100" <= here <= "\u115f" and "\u1100" <= before <= "\u115f")
    )


def _is_half_a_flag(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"
