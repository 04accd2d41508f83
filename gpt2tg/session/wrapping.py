"""Texts that are streamed to a terminal break between words, not amid them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from wcwidth import iter_graphemes, wcswidth

from gpt2tg.generation.visible_text import last_character

_COLOURS = re.compile(r"(\x1b\[[0-9;]*m)")
_COLOURS_AT_END = re.compile(r"\x1b(?:\[[0-9;]*m?)?\Z")
TAB = 8

# No line begins with the first, nor ends with the second: punctuation of scripts without spaces.
CLOSING = frozenset("。、，．！？：；）」』】》〉］｝〕…ー々ぁぃぅぇぉっゃゅょァィゥェォッャュョ")
OPENING = frozenset("（「『【《〈［｛〔")


class WordWrap:
    """Writes a text piece by piece. A word is held back until its end is known, and the last character with it."""

    def __init__(self, write: Callable[[str], None], width: Callable[[], int] | None) -> None:
        """`width` gives the columns of a terminal; None where lines are not to be broken."""
        self._write = write
        self._width = width
        self._held = ""  # may still become another character
        self._word: list[str] = []
        self._spaces = ""  # before the word
        self._column = 0
        self._out = ""

    def __call__(self, text: str) -> None:
        """Take the next piece."""
        self._held += text
        colours = _COLOURS_AT_END.search(self._held)
        whole = colours.start() if colours else last_character(self._held)
        text, self._held = self._held[:whole], self._held[whole:]
        self._take(text)
        self._show()

    def close(self) -> None:
        """Write what was held back."""
        rest, self._held = self._held, ""
        self._take(rest)
        self._end_word()
        if self._width is None or self._column + self._cells_of_spaces() <= self._width():
            self._out += self._spaces
        self._spaces = ""
        self._show()

    def _show(self) -> None:
        out, self._out = self._out, ""
        if out:
            self._write(out)

    def _take(self, text: str) -> None:
        if self._width is None:
            self._out += text
            return
        for character in _characters(text):
            if character == "\n":
                self._end_word()
                self._out += "\n"
                self._spaces, self._column = "", 0
            elif character in " \t":
                self._end_word()
                self._spaces += character
            else:
                if self._word and _may_part(self._word[-1], character):
                    self._end_word()
                self._word.append(character)
                if _cells("".join(self._word)) > self._width():  # no line holds it
                    self._end_word()

    def _end_word(self) -> None:
        """Put the word on this line, or on the next one where it fits no more."""
        if not self._word or self._width is None:
            return
        width, spaces = self._width(), self._cells_of_spaces()
        if self._column + spaces + _cells("".join(self._word)) <= width:
            self._out += self._spaces
            self._column += spaces
        elif self._column:
            self._out += "\n"
            self._column = 0
        for character in self._word:
            if self._column and self._column + _cells(character) > width:  # a word longer than a line
                self._out += "\n"
                self._column = 0
            self._out += character
            self._column += _cells(character)
        self._word, self._spaces = [], ""

    def _cells_of_spaces(self) -> int:
        """How wide the spaces are in this column, tabs included."""
        return len(f"{'x' * self._column}{self._spaces}".expandtabs(TAB)) - self._column


def _characters(text: str) -> Iterator[str]:
    """As a reader counts them; what sets colours is one too."""
    for part in _COLOURS.split(text):
        if part.startswith("\x1b"):
            yield part
        else:
            yield from iter_graphemes(part)


def _cells(text: str) -> int:
    """Columns that a text takes; what sets colours takes none."""
    return max(0, wcswidth(_COLOURS.sub("", text)))


def _may_part(before: str, after: str) -> bool:
    """Whether a line may end between two characters that no space parts: beside one of a script without spaces."""
    if before in OPENING or after in CLOSING or _COLOURS.match(before) or _COLOURS.match(after):
        return False
    return _cells(before) == 2 or _cells(after) == 2
