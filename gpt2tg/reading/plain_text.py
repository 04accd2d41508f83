"""Split plain text of any size into examples, in bounded memory.

Text stays as it is: only a byte-order mark is dropped, and CRLF is read as LF. The three modes differ only in what
ends an example.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, TextIO

# What an example is: a line, lines up to a blank one, or the whole file.
ExampleMode = Literal["line", "paragraph", "file"]

# Longer examples come in several pieces, so that a file without line breaks needs no more memory. They are cut before
# white space, because only there a tokenizer gives the parts the ids of the whole.
PIECE_CHARACTERS = 1 << 20


class Piece(NamedTuple):
    """An example, or a part of a long one."""

    text: str
    ends: bool  # whether the example ends with this piece
    learned: bool = True  # whether its tokens carry loss; those of a prompt do not


def pieces(file: TextIO, mode: ExampleMode) -> Iterator[Piece]:
    """Yield the text of an open file, example by example; long examples in several pieces.

    Args:
        file: opened with `newline="\\n"`.
        mode: `line` makes each line that is not blank an example, without its line break; `paragraph` the lines up to
            a blank one, with the line breaks between them; `file` all of the text, exactly as it is.
    """
    split = {"line": _lines, "paragraph": _paragraphs, "file": _whole_file}[mode]
    return split(_line_parts(file))


class _LinePart(NamedTuple):
    """A line, or a part of a very long one. The text includes the line break, as LF."""

    text: str
    starts_line: bool
    ends_line: bool

    @property
    def is_blank_line(self) -> bool:
        return self.starts_line and self.ends_line and not self.text.strip()


# Never cut a text before the line break at its end: the example may end there, and its last piece would be empty.


def _line_parts(file: TextIO) -> Iterator[_LinePart]:
    rest, starts_line = "", True
    while read := file.readline(PIECE_CHARACTERS):
        rest += read
        if rest.endswith("\n"):
            yield _LinePart(rest[:-2] + "\n" if rest.endswith("\r\n") else rest, starts_line, True)
            rest, starts_line = "", True
        elif cut := _last_cut(rest.removesuffix("\r"), len(rest) - len(read)):
            yield _LinePart(rest[:cut], starts_line, False)
            rest, starts_line = rest[cut:], False
    if rest:
        yield _LinePart(rest, starts_line, True)


# White space for str.isspace, but not for the regular expression of GPT-2's tokenizer.
_SEPARATORS = "\x1c\x1d\x1e\x1f"


def _last_cut(text: str, searched: int = 0) -> int:
    """Return where to cut a long text: before its last run of white space; 0 if there is none.

    A byte-level tokenizer never joins a character with white space after it, so the cut does not change the tokens.

    Args:
        searched: how many characters at the beginning were searched before, without finding a cut.
    """
    for position in range(len(text) - 1, max(searched, 1) - 1, -1):
        if text[position].isspace() and text[position] not in _SEPARATORS and not text[position - 1].isspace():
            return position
    return 0


def _lines(parts: Iterator[_LinePart]) -> Iterator[Piece]:
    for part in parts:
        if not part.is_blank_line:
            yield Piece(part.text.removesuffix("\n"), part.ends_line)


def _paragraphs(parts: Iterator[_LinePart]) -> Iterator[Piece]:
    pending = ""
    for part in parts:
        if not part.is_blank_line:
            pending += part.text
            if len(pending) >= PIECE_CHARACTERS and (cut := _last_cut(pending.removesuffix("\n"))):
                yield Piece(pending[:cut], False)
                pending = pending[cut:]
        elif pending:
            yield Piece(pending.removesuffix("\n"), True)
            pending = ""
    if pending:
        yield Piece(pending.removesuffix("\n"), True)


def _whole_file(parts: Iterator[_LinePart]) -> Iterator[Piece]:
    pending, searched, has_text = "", 0, False
    for part in parts:
        pending += part.text
        has_text = has_text or not part.is_blank_line
        if len(pending) >= PIECE_CHARACTERS:
            if cut := _last_cut(pending, searched):
                yield Piece(pending[:cut], False)
                pending = pending[cut:]
            searched = len(pending)
    if has_text:
        yield Piece(pending, True)
