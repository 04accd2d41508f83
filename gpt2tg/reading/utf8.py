"""Check and decode UTF-8: errors name the first bad byte."""

from __future__ import annotations

import codecs
from pathlib import Path

from gpt2tg.errors import UserError
from gpt2tg.reading.compressed import open_content

# Read at a time, so that a file of any size needs little memory.
CHUNK_BYTES = 1 << 20


def require_utf8(path: Path, option: str) -> int:
    """Check that every byte of a file belongs to UTF-8 text, and return the size of its content in bytes.

    Args:
        option: the flag that named the file, for errors.

    Raises:
        UserError: names the first byte that is zero or not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with open_content(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            if b"\0" in chunk:
                raise _binary_error(path, offset + chunk.index(0), option)
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                raise _encoding_error(path, offset - pending + error.start, option) from None
            offset += len(chunk)
    if unfinished := len(decoder.getstate()[0]):
        raise _encoding_error(path, offset - unfinished, option)
    return offset


def decode_utf8(content: bytes, path: Path, option: str | None) -> str:
    """Return the text of a file's content, without the byte-order mark.

    Raises:
        UserError: names the first byte that is zero or not UTF-8.
    """
    if b"\0" in content:
        raise _binary_error(path, content.index(0), option)
    try:
        return content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise _encoding_error(path, error.start, option) from None


def _binary_error(path: Path, offset: int, option: str | None) -> UserError:
    return UserError(f"{path} is a binary file: byte {offset} is zero; give a text file in UTF-8", option)


def _encoding_error(path: Path, offset: int, option: str | None) -> UserError:
    return UserError(
        f"{path} is not UTF-8: byte {offset} is not part of a character; "
        "save it as UTF-8, for instance with: iconv -f WINDOWS-1252 -t UTF-8",
        option,
    )
