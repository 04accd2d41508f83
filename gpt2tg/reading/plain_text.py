"""Reading examples from a text file of any size, in bounded memory.

Text is left as it is: only a byte-order mark is dropped, and CRLF is read as LF. What ends an example is the
one thing that differs between the three ways of reading.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from gpt2tg.errors import UserError

CHUNK_BYTES = 1 << 20

# Longer stretches of text are handed on in pieces, so that a file without line breaks needs no more memory
# (as long as it has white space, at which alone the tokens of a text can be parted).
PIECE_CHARACTERS = 1 << 20


class Piece(NamedTuple):
    """A stretch of text, whether an example ends with it, and whether it is learned or only given as context."""

    text: str
    ends: bool
    learned: bool = True


def require_utf8(path: Path, option: str) -> int:
    """The size of the file in bytes, once every one of them is known to be text.

    Raises:
        UserError: names the first byte that is none.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            if b"\0" in chunk:
                raise _binary(path, offset + chunk.index(0), option)
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, offset - pending + error.start, option) from None
            offset += len(chunk)
    if decoder.getstate()[0]:
        raise _not_utf8(path, offset - len(decoder.getstate()[0]), option)
    return offset


def decode_utf8(content: bytes, path: Path, option: str | None) -> str:
    """The text of a file that was read, without its byte-order mark.

    Raises:
        UserError: names the first byte that is no text.
    """
    if b"\0" in content:
        raise _binary(path, content.index(0), option)
    try:
        return content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error.start, option) from None


def _binary(path: Path, offset: int, option: str | None) -> UserError:
    return UserError(f"{path} is a binary file: byte {offset} is zero, expected UTF-8 text", option)


def _not_utf8(path: Path, offset: int, option: str | None) -> UserError:
    return UserError(
        f"{path} is not UTF-8: byte {offset} is no part of a character; "
        "save it as UTF-8, for instance with: iconv -f WINDOWS-1252 -t UTF-8",
        option,
    )


def pieces(file: TextIO, examples: str) -> Iterator[Piece]:
    """The text of an open file, example by example; long examples in several pieces.

    Args:
        file: opened with `newline="\\n"`.
        examples: `line`, each non-empty line is an example, its line break left out; `paragraph`, lines up to
            a blank one, with the line breaks between them; `file`, all of it.
    """
    read = {"line": _each_line, "paragraph": _each_paragraph, "file": _whole}[examples]
    return read(_line_parts(file))


class _Part(NamedTuple):
    """A line, or a part of a very long one. The text keeps its line break, as LF."""

    text: str
    starts: bool
    ends: bool

    @property
    def is_blank_line(self) -> bool:
        return self.starts and self.ends and not self.text.strip()


# No text is cut before the line break at its end: the example may end there, and its last piece would be empty.


def _line_parts(file: TextIO) -> Iterator[_Part]:
    rest, starts = "", True
    while read := file.readline(PIECE_CHARACTERS):
        rest += read
        if rest.endswith("\n"):
            yield _Part(rest[:-2] + "\n" if rest.endswith("\r\n") else rest, starts, True)
            rest, starts = "", True
        elif cut := _last_cut(rest.removesuffix("\r"), len(rest) - len(read)):
            yield _Part(rest[:cut], starts, False)
            rest, starts = rest[cut:], False
    if rest:
        yield _Part(rest, starts, True)


# Python takes these for white space, the tokenizer's regular expression does not.
_SEPARATORS = "\x1c\x1d\x1e\x1f"


def _last_cut(text: str, known: int = 0) -> int:
    """Where a long text may be cut: before its last white space; 0 where there is none.

    A byte-level tokenizer never joins what stands before white space with what follows, so that the cut leaves
    no trace in the tokens.
    """
    for position in range(len(text) - 1, max(known, 1) - 1, -1):
        if text[position].isspace() and text[position] not in _SEPARATORS and not text[position - 1].isspace():
            return position
    return 0


def _each_line(parts: Iterator[_Part]) -> Iterator[Piece]:
    for part in parts:
        if not part.is_blank_line:
            yield Piece(part.text.removesuffix("\n"), part.ends)


def _each_paragraph(parts: Iterator[_Part]) -> Iterator[Piece]:
    held = ""
    for part in parts:
        if not part.is_blank_line:
            held += part.text
            if len(held) >= PIECE_CHARACTERS and (cut := _last_cut(held.removesuffix("\n"))):
                yield Piece(held[:cut], False)
                held = held[cut:]
        elif held:
            yield Piece(held.removesuffix("\n"), True)
            held = ""
    if held:
        yield Piece(held.removesuffix("\n"), True)


def _whole(parts: Iterator[_Part]) -> Iterator[Piece]:
    held, seen, has_text = "", 0, False
    for part in parts:
        held += part.text
        has_text = has_text or not part.is_blank_line
        if len(held) >= PIECE_CHARACTERS:
            if cut := _last_cut(held, seen):
                yield Piece(held[:cut], False)
                held = held[cut:]
            seen = len(held)  # no cut before here
    if has_text:
        yield Piece(held, True)
