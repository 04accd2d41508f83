"""Which files to read, and what a first walk through them finds: all that is known before a token is made."""

from __future__ import annotations

import hashlib
import io
import random
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2tg.errors import UserError
from gpt2tg.options import EvaluationOptions, TrainingOptions
from gpt2tg.training.columns import BadRecord, Say
from gpt2tg.training.files import find_files
from gpt2tg.training.kinds import HEAD_BYTES, is_table, misnamed, require_plain, require_table
from gpt2tg.training.tables import record_pieces
from gpt2tg.training.text import Piece, pieces, require_utf8

# What is left where text was read in another encoding than it was written in.
GARBLED = ("\N{REPLACEMENT CHARACTER}", "â€", "Ã¤", "Ã¶", "Ã¼", "Ã©", "Ã¨")

BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class Reading:
    """How files are read: what an example of plain text is, and which column of a table holds the text."""

    examples: str
    text_column: str | None = None


@dataclass(frozen=True)
class Survey:
    """What a first walk through the files found."""

    files: tuple[Path, ...]
    reading: Reading
    bytes: int  # of the files
    text_bytes: int  # of the examples in them
    empty: int  # rows without text, passed over
    garbled: int  # examples with letters that an earlier conversion broke
    digest: str  # of the content of the files and of how they are read, not of their names
    hashes: np.ndarray  # (examples,) int64: equal for equal examples, within this process
    notices: tuple[str, ...] = ()  # what a user should know: which columns are read, what is passed over

    @property
    def examples(self) -> int:
        """Number of examples."""
        return len(self.hashes)

    def pieces(self) -> Iterator[Piece]:
        """The text of all examples, in order."""
        for path in self.files:
            yield from (piece for piece in _pieces(io.FileIO(path), path, self.reading) if piece.text)


@dataclass(frozen=True)
class TextSource:
    """The examples of the files, or the part of them on one side of the split."""

    found: Survey
    held_out: frozenset[int] = frozenset()
    keep_held_out: bool = False

    def __iter__(self) -> Iterator[Piece]:
        number = 0
        for piece in self.found.pieces():
            if (number in self.held_out) == self.keep_held_out:
                yield piece
            number += piece.ends

    @property
    def count(self) -> int:
        """Number of examples."""
        return len(self.held_out) if self.keep_held_out else self.found.examples - len(self.held_out)

    @property
    def chosen(self) -> np.ndarray:
        """(examples,) bool: which of the examples are on this side."""
        is_held_out = np.zeros(self.found.examples, dtype=bool)
        is_held_out[list(self.held_out)] = True
        return is_held_out if self.keep_held_out else ~is_held_out


# What to learn from, and what to measure on.
Sources = tuple[TextSource, TextSource | None]


def plan_sources(options: TrainingOptions) -> Sources:
    """Look through the files and decide which examples are held out, before anything is loaded or written.

    Returns:
        What to learn from, and what to measure on: the validation files, or `validation_split` of the examples
        (at least one), or None. A single example cannot be split here; `load_data` splits its blocks.

    Raises:
        UserError: a file cannot be used.
    """
    reading = Reading(options.examples, options.text_column)
    output = Path(options.output_dir)
    found = survey(options.train_file, reading, "train_file", output)
    if options.validation_file:
        return TextSource(found), TextSource(survey(options.validation_file, reading, "validation_file", output))
    if not options.validation_split or found.examples < 2:
        return TextSource(found), None
    held_out = _choose_held_out(found.examples, options.validation_split, options.seed)
    return TextSource(found, held_out), TextSource(found, held_out, keep_held_out=True)


def plan_evaluation(options: EvaluationOptions) -> Survey:
    """Look through the files to measure on.

    Raises:
        UserError: a file cannot be used.
    """
    return survey(options.eval_file, Reading(options.examples, options.text_column), "eval_file")


def _choose_held_out(examples: int, share: float, seed: int) -> frozenset[int]:
    count = min(max(1, round(examples * share)), examples - 1)
    return frozenset(random.Random(seed).sample(range(examples), count))


def survey(names: tuple[str, ...], reading: Reading, option: str, output: Path | None = None) -> Survey:
    """Walk through the files once: are they text, how many examples do they hold, and which are alike?

    Args:
        output: a directory whose texts are not read where it lies in a folder that is.

    Raises:
        UserError: no such file, binary, not UTF-8 (names the byte), a broken table, or no text in them.
    """
    if not names:
        raise UserError("is required: give a text file", option)
    notices: list[str] = []
    files = find_files(names, option, output, notices.append)
    require_table(reading.text_column, *files)
    size = text_bytes = empty = garbled = running = 0
    digest, hashes = hashlib.sha256(), array("q")
    told: dict[str, list[Path]] = {}
    for path in files:
        say = _Teller(path, told)
        file = _opened(path, option, say)
        for piece in _checked(_pieces(file, path, reading, say), path, option):
            if not piece.text:
                empty += 1
                continue
            text_bytes += len(piece.text.encode())
            garbled += any(sign in piece.text for sign in GARBLED)
            running = hash((running, piece))
            if piece.ends:
                hashes.append(running)
                running = 0
        size += file.size
        digest.update(repr((file.digest.hexdigest(), _how_read(path, reading))).encode())
    if not hashes:
        where = files[0] if len(files) == 1 else f"none of {len(files)} files"
        raise UserError(f"{where} holds no text ({size} bytes): give a file with at least one example", option)
    notices += [f"{_file_names(paths)}: {what}" for what, paths in told.items()]
    return Survey(
        files, reading, size, text_bytes, empty, garbled, digest.hexdigest(), np.array(hashes), tuple(notices)
    )


def _file_names(paths: list[Path]) -> str:
    return str(paths[0]) if len(paths) == 1 else f"{len(paths)} files, such as {paths[0]}"


@dataclass(frozen=True)
class _Teller:
    """Gathers what is to be told of files: the same of many is told once."""

    path: Path
    told: dict[str, list[Path]]

    def __call__(self, what: str) -> None:
        self.told.setdefault(what, []).append(self.path)


def _opened(path: Path, option: str, say: Say) -> _WatchedFile:
    """A file to read, known not to be something else than text.

    Raises:
        UserError: it cannot be read, or is a PDF, an archive, UTF-16, ...
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        require_plain(path, head, option)
        if warning := misnamed(path, head):
            say(warning)
        return _WatchedFile(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", option) from None


def _how_read(path: Path, reading: Reading) -> tuple[str | None, ...]:
    suffix = path.suffix.lower()
    return (suffix, reading.text_column) if is_table(path) else (reading.examples,)


def _pieces(raw: io.FileIO, path: Path, reading: Reading, say: Say = lambda _: None) -> Iterator[Piece]:
    """The examples of an open file, by the kind that its name tells. A row without text is an empty piece."""
    buffered = io.BufferedReader(raw, BUFFER_BYTES)
    with io.TextIOWrapper(buffered, encoding="utf-8-sig", newline="" if is_table(path) else "\n") as file:
        if is_table(path):
            yield from record_pieces(file, path.suffix.lower(), reading.text_column, say)
        else:
            yield from pieces(file, reading.examples)


def _checked(stream: Iterator[Piece], path: Path, option: str) -> Iterator[Piece]:
    """The same, with what goes wrong said to the user."""
    try:
        yield from stream
    except (UnicodeDecodeError, _ZeroByteError):
        require_utf8(path, option)  # walks through the file again to name the byte
        raise
    except BadRecord as error:
        raise UserError(error.about(path), option) from None


class _ZeroByteError(ValueError):
    """A file that is no text."""


class _WatchedFile(io.FileIO):
    """A file whose size and digest are known once it is read: what is learned from is what was named."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.size = 0
        self.digest = hashlib.sha256()

    def readinto(self, buffer: bytearray | memoryview) -> int:
        count = super().readinto(buffer) or 0
        chunk = bytes(memoryview(buffer)[:count])
        if b"\0" in chunk:
            raise _ZeroByteError
        self.size += count
        self.digest.update(chunk)
        return count
