"""Read the examples of one input file: open it, recognise its format, and hash what is read."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from gpt2tg.errors import UserError, one_line
from gpt2tg.io import lfs
from gpt2tg.reading.compressed import DamagedFileError, compression, decompressed, text_suffix
from gpt2tg.reading.file_types import (
    HEAD_BYTES,
    format_warning,
    is_binary_table,
    is_table,
    require_plain_text,
)
from gpt2tg.reading.parsed_rows import JSON_LINES, binary_rows, in_rows, json_rows, rows_for_lines
from gpt2tg.reading.plain_text import ExampleMode, Piece, pieces
from gpt2tg.reading.table_row import Notify, TableError
from gpt2tg.reading.table_rows import row_pieces
from gpt2tg.reading.utf8 import require_utf8
from gpt2tg.training.data.conversations import TemplateChoice
from gpt2tg.training.data.dataset_files import RemoteFile
from gpt2tg.training.data.hashed_file import HashedFile, ZeroByteError

BUFFER_BYTES = 1 << 20

# Part of the digest of tables. Raise it when their reading changes, or a run would be resumed on other text.
TABLE_VERSION = "2"


@dataclass(frozen=True)
class TextFormat:
    """How to find the examples in a file: what an example of plain text is, and which column of a table to read."""

    examples: ExampleMode
    text_column: str | None = None
    conversations: TemplateChoice = field(default_factory=TemplateChoice, compare=False)


def _ignore(notice: str) -> None:
    pass


class FilePass:
    """One pass over an input file. After it, `size` and `digest` are those of what was read."""

    def __init__(self, path: Path, text_format: TextFormat, notify: Notify = _ignore) -> None:
        """Open the file.

        Args:
            notify: called with each notice on what is read and skipped.

        Raises:
            OSError: it cannot be opened.
        """
        self._path, self._format = path, text_format
        self._notify = lambda notice: notify(rows_for_lines(notice, path))
        self._file = path.open("rb")
        self._content: HashedFile | None = None
        self._rows = hashlib.sha256()

    @property
    def size(self) -> int:
        """Bytes of text that were read; of a Parquet or Arrow file, bytes of the file."""
        return self._path.stat().st_size if self._content is None else self._content.size

    @property
    def digest(self) -> str:
        """A hash of what was read. A compressed file has that of its content."""
        return self._rows.hexdigest() if self._content is None else self._content.digest

    @property
    def key(self) -> tuple[str | None, ...]:
        """What the examples depend on besides the content."""
        if not is_table(self._path):
            return (self._format.examples,)
        suffix = JSON_LINES if is_binary_table(self._path) else text_suffix(self._path)
        return (suffix, self._format.text_column, TABLE_VERSION, *self._format.conversations.key)

    def pieces(self) -> Iterator[Piece]:
        """Yield the examples. Rows without text are empty.

        Raises:
            DamagedFileError, TableError, UnicodeDecodeError, ZeroByteError: the content cannot be read.
        """
        if is_binary_table(self._path):
            with self._file:
                for piece in self._row_pieces(binary_rows(self._file, self._path).as_file(), JSON_LINES):
                    text = piece.text.encode()
                    self._rows.update(b"%d %d %d " % (len(text), piece.ends, piece.learned))
                    self._rows.update(text)
                    yield piece
            return
        self._content = HashedFile(decompressed(self._file, compression(self._path)))
        buffered = io.BufferedReader(self._content, BUFFER_BYTES)
        newline = "" if is_table(self._path) else "\n"
        with io.TextIOWrapper(buffered, encoding="utf-8-sig", newline=newline) as text_file:
            yield from self._text_pieces(text_file)

    def _text_pieces(self, file: TextIO) -> Iterator[Piece]:
        suffix = text_suffix(self._path)
        if suffix == ".json":
            yield from self._row_pieces(json_rows(file).as_file(), JSON_LINES)
        elif is_table(self._path):
            yield from self._row_pieces(file, suffix)
        else:
            yield from pieces(file, self._format.examples)

    def _row_pieces(self, file: TextIO, suffix: str) -> Iterator[Piece]:
        return row_pieces(file, suffix, self._format.text_column, self._notify, self._format.conversations)


def first_pass(path: Path, text_format: TextFormat, option: str, notify: Notify) -> FilePass:
    """Open a file for its first pass, after a look at its first bytes.

    Args:
        option: the flag that named the file, for errors.

    Raises:
        UserError: it cannot be read, or is a PDF, an archive, UTF-16 ...
    """
    try:
        with path.open("rb") as file:
            if lfs.begins_pointer(file.read(lfs.HEAD_BYTES)):
                raise lfs.refusal(path, option)
            file.seek(0)
            if not is_binary_table(path):
                with decompressed(file, compression(path)) as content:
                    _check_head(path, content.read(HEAD_BYTES), option, notify)
        return FilePass(path, text_format, notify)
    except DamagedFileError as error:
        raise UserError(f"{path} {error}", option) from None
    except UserError:
        raise
    except Exception as error:
        if isinstance(path, RemoteFile):
            raise lost_connection(path, error) from None
        if isinstance(error, OSError):
            raise UserError(f"{path} cannot be read: {error.strerror or error}", option) from None
        raise


def _check_head(path: Path, head: bytes, option: str, notify: Notify) -> None:
    require_plain_text(path, head, option)
    if warning := format_warning(path, head):
        notify(warning)


def with_user_errors(stream: Iterator[Piece], path: Path, option: str) -> Iterator[Piece]:
    """Yield the same pieces; turn errors of reading into a UserError that names the byte, the line or the row."""
    try:
        yield from stream
    except (UnicodeDecodeError, ZeroByteError):
        require_utf8(path, option)  # reads the file again, to name the byte
        raise
    except DamagedFileError as error:
        raise UserError(f"{path} {error}", option) from None
    except TableError as error:
        raise UserError(in_rows(error, path).with_path(path), option) from None
    except UserError:
        raise
    except Exception as error:  # of many libraries
        if not isinstance(path, RemoteFile):
            raise
        raise lost_connection(path, error) from None


def lost_connection(path: RemoteFile, error: Exception) -> UserError:
    """Return the error for a file of the hub that could not be read to its end."""
    return UserError(
        f"{path} could not be read from the hub ({one_line(error)}): try again, or leave out --dataset_streaming",
        "dataset_name",
    )


def second_pass(path: Path, text_format: TextFormat, digest: str, option: str) -> Iterator[Piece]:
    """Yield the examples of a file that was read before.

    Args:
        digest: of the first pass.

    Raises:
        UserError: its content has changed, or it is gone.
    """
    changed = f"{path} changed while it was read: start again when nothing writes to it"
    try:
        file = FilePass(path, text_format)
        yield from file.pieces()
    except OSError as error:
        raise UserError(f"{path} cannot be read a second time: {error.strerror or error}", option) from None
    except ValueError:  # no longer UTF-8, or no longer a table
        raise UserError(changed, option) from None
    if file.digest != digest:
        raise UserError(changed, option)
