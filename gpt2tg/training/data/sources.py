"""Which files to read, and what a first walk through them finds: all that is known before a token is made."""

from __future__ import annotations

import hashlib
import io
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gpt2tg.errors import UserError
from gpt2tg.options import EvaluationOptions, TrainingOptions
from gpt2tg.reading.columns import Say, TableError
from gpt2tg.reading.file_types import HEAD_BYTES, check_text_column, is_table, misnamed, require_plain
from gpt2tg.reading.plain_text import Piece, pieces, require_utf8
from gpt2tg.reading.tables import record_pieces
from gpt2tg.training.data.input_files import find_files
from gpt2tg.training.data.split import Split, choose

# What is left where text was read in another encoding than it was written in.
GARBLED = ("\N{REPLACEMENT CHARACTER}", "â€", "Ã¤", "Ã¶", "Ã¼", "Ã©", "Ã¨")

BUFFER_BYTES = 1 << 20

# Part of what tables are known by: raise it when their reading changes, or a run would be resumed on other text.
TABLES = "2"


@dataclass(frozen=True)
class Reading:
    """How files are read: what an example of plain text is, and which column of a table holds the text."""

    examples: str
    text_column: str | None = None


@dataclass(frozen=True)
class Corpus:
    """What a first walk through the files found."""

    files: tuple[Path, ...]
    digests: tuple[str, ...]  # of the files
    option: str  # that names the files, for messages
    reading: Reading
    bytes: int  # of the files
    text_bytes: int  # of the examples in them
    learned_bytes: int  # of these, without prompts
    empty: int  # rows without text, passed over
    garbled: int  # examples with letters that an earlier conversion broke
    digest: str  # of the content of the files and of how they are read, not of their names
    hashes: np.ndarray  # (examples,) int64: equal for equal examples, within this process
    sizes: np.ndarray  # (examples,) int64: bytes of text
    notices: tuple[str, ...] = ()  # what a user should know: which columns are read, what is passed over

    @property
    def examples(self) -> int:
        """Number of examples."""
        return len(self.hashes)

    def pieces(self) -> Iterator[Piece]:
        """The text of all examples, in order.

        Raises:
            UserError: a file is not what it was at the first walk.
        """
        for path, digest in zip(self.files, self.digests, strict=True):
            yield from (piece for piece in _unchanged(path, self.reading, digest, self.option) if piece.text)


@dataclass(frozen=True)
class TextSource:
    """The examples of the files, or the part of them on one side of the split."""

    found: Corpus
    split: Split = field(default_factory=Split)
    keep_held_out: bool = False

    def __iter__(self) -> Iterator[Piece]:
        """The text of the examples that are on this side whole; parted ones are learned from."""
        number, chosen = 0, self.chosen
        for piece in self.found.pieces():
            if number < len(chosen) and chosen[number]:  # a file that grew is refused at its end
                yield piece
            number += piece.ends

    @property
    def count(self) -> int:
        """Number of whole examples."""
        return len(self.split.whole) if self.keep_held_out else self.found.examples - len(self.split.whole)

    @property
    def chosen(self) -> np.ndarray:
        """(examples,) bool: which of the examples are on this side whole; parted ones are learned from."""
        is_held_out = np.zeros(self.found.examples, dtype=bool)
        is_held_out[self.split.whole] = True
        return is_held_out if self.keep_held_out else ~is_held_out


# What to learn from, and what to measure on.
Sources = tuple[TextSource, TextSource | None]


def plan_sources(options: TrainingOptions) -> Sources:
    """Look through the files and decide which examples are held out, before anything is loaded or written.

    Returns:
        What to learn from, and what to measure on: the validation files, or `validation_split` of the text, or None.
        A single example cannot be split here; `load_data` splits its blocks.

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
    split = choose(found.hashes, found.sizes, options.validation_split, options.seed)
    if not (len(split.whole) or len(split.parted)):  # short copies of one text
        return TextSource(found), None
    return TextSource(found, split), TextSource(found, split, keep_held_out=True)


def scan_evaluation(options: EvaluationOptions) -> Corpus:
    """Look through the files to measure on.

    Raises:
        UserError: a file cannot be used.
    """
    return survey(options.eval_file, Reading(options.examples, options.text_column), "eval_file")


def survey(names: tuple[str, ...], reading: Reading, option: str, output: Path | None = None) -> Corpus:
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
    check_text_column(reading.text_column, *files)
    size = text_bytes = learned_bytes = empty = garbled = running = before = 0
    digest, digests, hashes, sizes = hashlib.sha256(), [], array("q"), array("q")
    told: dict[str, list[Path]] = {}
    for path in files:
        say = _Teller(path, told)
        file = _opened(path, option, say)
        for piece in _checked(_pieces(file, path, reading, say), path, option):
            if not piece.text:
                empty += 1
                continue
            length = len(piece.text.encode())
            text_bytes += length
            learned_bytes += length * piece.learned
            garbled += any(sign in piece.text for sign in GARBLED)
            running = hash((running, piece))
            if piece.ends:
                hashes.append(running)
                sizes.append(text_bytes - before)
                running, before = 0, text_bytes
        size += file.size
        digests.append(file.digest.hexdigest())
        digest.update(repr((digests[-1], _how_read(path, reading))).encode())
    if not hashes:
        where = files[0] if len(files) == 1 else f"none of {len(files)} files"
        raise UserError(f"{where} holds no text ({size} bytes): give a file with at least one example", option)
    notices += [f"{_file_names(paths)}: {what}" for what, paths in told.items()]
    return Corpus(
        files,
        tuple(digests),
        option,
        reading,
        bytes=size,
        text_bytes=text_bytes,
        learned_bytes=learned_bytes,
        empty=empty,
        garbled=garbled,
        digest=digest.hexdigest(),
        hashes=np.array(hashes),
        sizes=np.array(sizes),
        notices=tuple(notices),
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
    return (suffix, reading.text_column, TABLES) if is_table(path) else (reading.examples,)


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
    except TableError as error:
        raise UserError(error.about(path), option) from None


def _unchanged(path: Path, reading: Reading, digest: str, option: str) -> Iterator[Piece]:
    """The examples of a file that was read before.

    Raises:
        UserError: it is no longer the same, or no longer there.
    """
    changed = f"{path} changed while it was read: start again when nothing writes to it"
    try:
        file = _WatchedFile(path)
        yield from _pieces(file, path, reading)
    except OSError as error:
        raise UserError(f"{path} cannot be read a second time: {error.strerror}", option) from None
    except ValueError:  # no longer UTF-8, or no longer a table
        raise UserError(changed, option) from None
    if file.digest.hexdigest() != digest:
        raise UserError(changed, option)


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
