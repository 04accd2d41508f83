"""Scan text files once: check that they are text, count and hash their examples, and read them again later."""

from __future__ import annotations

import hashlib
import io
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gpt2tg.errors import UserError
from gpt2tg.reading.file_types import HEAD_BYTES, check_text_column, format_warning, is_table, require_plain_text
from gpt2tg.reading.plain_text import ExampleMode, Piece, pieces
from gpt2tg.reading.table_row import Notify, TableError
from gpt2tg.reading.table_rows import row_pieces
from gpt2tg.reading.utf8 import require_utf8
from gpt2tg.training.data.hashed_file import HashedFile, ZeroByteError
from gpt2tg.training.data.input_files import find_files

# Traces of text that was decoded with the wrong encoding.
GARBLED = ("\N{REPLACEMENT CHARACTER}", "â€", "Ã¤", "Ã¶", "Ã¼", "Ã©", "Ã¨")

BUFFER_BYTES = 1 << 20

# Part of the digest of tables. Raise it when their reading changes, or a run would be resumed on other text.
TABLE_VERSION = "2"


@dataclass(frozen=True)
class TextFormat:
    """How to find the examples in a file: what an example of plain text is, and which column of a table to read."""

    examples: ExampleMode
    text_column: str | None = None


@dataclass(frozen=True)
class Corpus:
    """Text files that were scanned once: their digests, counts, and a hash and a size for each example."""

    files: tuple[Path, ...]
    file_digests: tuple[str, ...]
    option: str  # the flag that named the files, for errors
    text_format: TextFormat
    bytes: int  # of the files
    text_bytes: int  # of the examples
    learned_bytes: int  # of the examples without prompts
    empty: int  # rows without text, skipped
    garbled: int  # pieces with characters that a wrong decoding left
    digest: str  # of the contents and the text format, whatever the files are called
    hashes: np.ndarray  # (examples,) int64: equal for equal examples, within this process
    sizes: np.ndarray  # (examples,) int64: bytes of text
    notices: tuple[str, ...] = ()  # for the user: which columns are read, what is skipped

    @property
    def examples(self) -> int:
        """Number of examples."""
        return len(self.hashes)

    @property
    def name(self) -> str:
        """What to call the text, for people."""
        first, others = self.files[0].name, len(self.files) - 1
        return f"{first} and {others:,} more" if others else first

    def pieces(self) -> Iterator[Piece]:
        """Yield the text of all examples, in order. Reads the files again.

        Raises:
            UserError: a file has changed since the scan.
        """
        for path, digest in zip(self.files, self.file_digests, strict=True):
            yield from (piece for piece in _read_again(path, self.text_format, digest, self.option) if piece.text)


@dataclass
class _Tally:
    """Counts and hashes examples piece by piece."""

    text_bytes: int = 0
    learned_bytes: int = 0
    empty: int = 0
    garbled: int = 0
    hashes: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    _hash: int = 0  # of the current example
    _counted_bytes: int = 0  # of the examples before it

    def add(self, piece: Piece) -> None:
        if not piece.text:
            self.empty += 1
            return
        length = len(piece.text.encode())
        self.text_bytes += length
        self.learned_bytes += length * piece.learned
        self.garbled += any(trace in piece.text for trace in GARBLED)
        self._hash = hash((self._hash, piece))
        if piece.ends:
            self.hashes.append(self._hash)
            self.sizes.append(self.text_bytes - self._counted_bytes)
            self._hash, self._counted_bytes = 0, self.text_bytes


def scan_corpus(names: tuple[str, ...], text_format: TextFormat, option: str, output: Path | None = None) -> Corpus:
    """Read the files once, and return what they hold.

    Args:
        names: files, folders and patterns.
        option: the flag that gave the names, for errors.
        output: a directory to leave out if it lies in one of the folders.

    Raises:
        UserError: a file is missing, not UTF-8 text (names the byte) or a malformed table, or no file has text.
    """
    if not names:
        raise UserError("is required: give a text file", option)
    notices: list[str] = []
    files = find_files(names, option, output, notices.append)
    check_text_column(text_format.text_column, *files)
    tally, size, digest = _Tally(), 0, hashlib.sha256()
    file_digests: list[str] = []
    by_notice: dict[str, list[Path]] = {}
    for path in files:
        notify = _NoticeCollector(path, by_notice)
        file = _open_checked(path, option, notify)
        for piece in _with_user_errors(_read_pieces(file, path, text_format, notify), path, option):
            tally.add(piece)
        size += file.size
        file_digests.append(file.digest)
        digest.update(repr((file.digest, _format_key(path, text_format))).encode())
    if not tally.hashes:
        raise _empty_error(files, size, option)
    notices += [f"{_file_names(paths)}: {notice}" for notice, paths in by_notice.items()]
    return Corpus(
        files,
        tuple(file_digests),
        option,
        text_format,
        bytes=size,
        text_bytes=tally.text_bytes,
        learned_bytes=tally.learned_bytes,
        empty=tally.empty,
        garbled=tally.garbled,
        digest=digest.hexdigest(),
        hashes=np.array(tally.hashes),
        sizes=np.array(tally.sizes),
        notices=tuple(notices),
    )


def _empty_error(files: tuple[Path, ...], size: int, option: str) -> UserError:
    what = f"{files[0]} holds no text" if len(files) == 1 else f"none of {len(files)} files holds text"
    return UserError(f"{what} ({size} bytes): give a file with at least one example", option)


def _file_names(paths: list[Path]) -> str:
    return str(paths[0]) if len(paths) == 1 else f"{len(paths)} files, such as {paths[0]}"


@dataclass(frozen=True)
class _NoticeCollector:
    """Collects the notices on one file, so that a notice on many files is printed once."""

    path: Path
    by_notice: dict[str, list[Path]]

    def __call__(self, notice: str) -> None:
        self.by_notice.setdefault(notice, []).append(self.path)


def _open_checked(path: Path, option: str, notify: Notify) -> HashedFile:
    """Open a file after a look at its first bytes.

    Raises:
        UserError: it cannot be read, or is a PDF, an archive, UTF-16 ...
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        require_plain_text(path, head, option)
        if warning := format_warning(path, head):
            notify(warning)
        return HashedFile(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", option) from None


def _format_key(path: Path, text_format: TextFormat) -> tuple[str | None, ...]:
    """Return what the examples of a file depend on besides its content."""
    suffix = path.suffix.lower()
    return (suffix, text_format.text_column, TABLE_VERSION) if is_table(path) else (text_format.examples,)


def _ignore(notice: str) -> None:
    pass


def _read_pieces(raw: io.FileIO, path: Path, text_format: TextFormat, notify: Notify = _ignore) -> Iterator[Piece]:
    """Yield the examples of an open file, read by its name as a table or as plain text. Rows without text are empty."""
    buffered = io.BufferedReader(raw, BUFFER_BYTES)
    with io.TextIOWrapper(buffered, encoding="utf-8-sig", newline="" if is_table(path) else "\n") as file:
        if is_table(path):
            yield from row_pieces(file, path.suffix.lower(), text_format.text_column, notify)
        else:
            yield from pieces(file, text_format.examples)


def _with_user_errors(stream: Iterator[Piece], path: Path, option: str) -> Iterator[Piece]:
    """Yield the same pieces; turn errors of reading into a UserError that names the byte or the line."""
    try:
        yield from stream
    except (UnicodeDecodeError, ZeroByteError):
        require_utf8(path, option)  # reads the file again, to name the byte
        raise
    except TableError as error:
        raise UserError(error.with_path(path), option) from None


def _read_again(path: Path, text_format: TextFormat, digest: str, option: str) -> Iterator[Piece]:
    """Yield the examples of a file that was scanned before.

    Raises:
        UserError: its content has changed, or it is gone.
    """
    changed = f"{path} changed while it was read: start again when nothing writes to it"
    try:
        file = HashedFile(path)
        yield from _read_pieces(file, path, text_format)
    except OSError as error:
        raise UserError(f"{path} cannot be read a second time: {error.strerror}", option) from None
    except ValueError:  # no longer UTF-8, or no longer a table
        raise UserError(changed, option) from None
    if file.digest != digest:
        raise UserError(changed, option)
