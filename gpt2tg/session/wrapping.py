"""Word wrap for texts that are streamed to a terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from wcwidth import iter_graphemes, wcswidth

from gpt2tg.generation.visible_text import last_character

_COLOURS = re.compile(r"(\x1b\[[0-9;]*m)")
_COLOURS_AT_END = re.compile(r"\x1b(?:\[[0-9;]*m?)?\Z")
TAB = 8

# Punctuation of scripts without spaces: no line begins with a closing character or ends with an opening one.
CLOSING = frozenset("。、，．！？：；）」』】》〉］｝〕…ー々ぁぃぅぇぉっゃゅょァィゥェォッャュョ")
OPENING = frozenset("（「『【《〈［｛〔")


class WordWrap:
    """Writes a text piece by piece, and breaks lines between words. The last word is held back until it is complete."""

    def __init__(self, write: Callable[[str], None], width: Callable[[], int] | None) -> None:
        """`width` returns the columns of the terminal; None breaks no lines."""
        self._write = write
        self._width = width
        self._held = ""  # the last character, which may combine with the next piece
        self._word: list[str] = []
        self._spaces = ""  # before the word
        self._column = 0
        self._out = ""

    def __call__(self, text: str) -> None:
        """Write the next piece, except its last word."""
        self._held += text
        colours = _COLOURS_AT_END.search(self._held)
        complete = colours.start() if colours else last_character(self._held)
        text, self._held = self._held[:complete], self._held[complete:]
        self._take(text)
        self._show()

    def close(self) -> None:
        """Write what is held back."""
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
                if self._word and _may_break(self._word[-1], character):
                    self._end_word()
                self._word.append(character)
                if _cells("".join(self._word)) > self._width():  # longer than a line
                    self._end_word()

    def _end_word(self) -> None:
        """Put the word on this line, or on the next one if it does not fit."""
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
            if self._column and self._column + _cells(character) > width:  # the word is longer than a line
                self._out += "\n"
                self._column = 0
            self._out += character
            self._column += _cells(character)
        self._word, self._spaces = [], ""

    def _cells_of_spaces(self) -> int:
        """Return the width of the spaces and tabs before the word."""
        return len(f"{'x' * self._column}{self._spaces}".expandtabs(TAB)) - self._column


def _characters(text: str) -> Iterator[str]:
    """Split a text into graphemes; a colour sequence counts as one."""
    for part in _COLOURS.split(text):
        if part.startswith("\x1b"):
            yield part
        else:
            yield from iter_graphemes(part)


def _cells(text: str) -> int:
    """Return the columns that a text occupies; colour sequences occupy none."""
    return max(0, wcswidth(_COLOURS.sub("", text)))


def _may_break(before: str, after: str) -> bool:
    """Whether a line may end between two characters without a space: next to a wide one, as in Chinese or Japanese."""
    if before in OPENING or after in CLOSING or _COLOURS.match(before) or _COLOURS.match(after):
        return False
    return _cells(before) == 2 or _cells(after) == 2
