"""Scan text files once: check that they are text, count and hash their examples, and read them again later."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gpt2tg.checkpoint.chat_template import ChatTemplate
from gpt2tg.errors import UserError
from gpt2tg.reading.file_types import check_text_column
from gpt2tg.reading.plain_text import Piece
from gpt2tg.training.data.dataset_files import DatasetOrigin
from gpt2tg.training.data.file_pass import TextFormat, first_pass, second_pass, with_user_errors
from gpt2tg.training.data.input_files import find_files

# Traces of text that was decoded with the wrong encoding.
GARBLED = ("\N{REPLACEMENT CHARACTER}", "â€", "Ã¤", "Ã¶", "Ã¼", "Ã©", "Ã¨")


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
    hashes: np.ndarray  # (examples,) int64: equal for equal examples
    sizes: np.ndarray  # (examples,) int64: bytes of text
    file_examples: tuple[int, ...] = ()  # how many each file holds
    notices: tuple[str, ...] = ()  # for the user: which columns are read, what is skipped
    origin: DatasetOrigin | None = None  # the dataset that the files belong to
    stream_digest: str | None = None  # in place of `digest` for tokens that were made in the first pass

    @property
    def chat_template(self) -> ChatTemplate | None:
        """The template that made text of conversations; None if there are none."""
        return self.text_format.conversations.used

    @property
    def has_prompts(self) -> bool:
        """Whether some of the text carries no loss: prompts of completions, questions of answers."""
        return self.learned_bytes < self.text_bytes

    @property
    def examples(self) -> int:
        """Number of examples."""
        return len(self.hashes)

    @property
    def name(self) -> str:
        """What to call the text, for people."""
        if self.origin is not None:
            return f"{self.origin.name}, {self.origin.split}"
        first, others = self.files[0].name, len(self.files) - 1
        return f"{first} and {others:,} more" if others else first

    def pieces(self) -> Iterator[Piece]:
        """Yield the text of all examples, in order. Reads the files again.

        Raises:
            UserError: a file has changed since the scan.
        """
        for path, digest in zip(self.files, self.file_digests, strict=True):
            yield from (piece for piece in second_pass(path, self.text_format, digest, self.option) if piece.text)


@dataclass
class _Tally:
    """Counts and hashes examples piece by piece."""

    text_bytes: int = 0
    learned_bytes: int = 0
    empty: int = 0
    garbled: int = 0
    hashes: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    _hash: bytes = b""  # of the current example
    _counted_bytes: int = 0  # of the examples before it

    def add(self, piece: Piece) -> None:
        if not piece.text:
            self.empty += 1
            return
        text = piece.text.encode()
        self.text_bytes += len(text)
        self.learned_bytes += len(text) * piece.learned
        self.garbled += any(trace in piece.text for trace in GARBLED)
        key = b"%d%d" % (piece.ends, piece.learned)
        self._hash = hashlib.blake2b(text, digest_size=8, key=key, salt=self._hash).digest()
        if piece.ends:
            self.hashes.append(int.from_bytes(self._hash, "little", signed=True))
            self.sizes.append(self.text_bytes - self._counted_bytes)
            self._hash, self._counted_bytes = b"", self.text_bytes


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
        or_dataset = ", or a dataset with --dataset_name" if option == "train_file" else ""
        raise UserError(f"is required: give a text file{or_dataset}", option)
    notices: list[str] = []
    files = find_files(names, option, output, notices.append)
    check_text_column(text_format.text_column, *files)
    return scan_files(files, text_format, option, notices)


def scan_files(files: tuple[Path, ...], text_format: TextFormat, option: str, notices: Iterable[str] = ()) -> Corpus:
    """Read these files once, and return what they hold. Arguments and errors are those of `scan_corpus`.

    Args:
        notices: what to tell the user before the notices on these files.
    """
    scan = CorpusScan(files, text_format, option, tuple(notices))
    for _ in scan.pieces():
        pass
    return scan.corpus()


class CorpusScan:
    """The first pass over the files of a corpus."""

    def __init__(
        self, files: tuple[Path, ...], text_format: TextFormat, option: str, notices: tuple[str, ...] = ()
    ) -> None:
        """notices: what to tell the user before the notices on these files."""
        self._files, self._format, self._option, self._notices = files, text_format, option, notices
        self._tally, self._size, self._digest = _Tally(), 0, hashlib.sha256()
        self._file_digests: list[str] = []
        self._file_examples: list[int] = []
        self._by_notice: dict[str, list[Path]] = {}

    def pieces(self) -> Iterator[Piece]:
        """Yield the text of all examples, in order, and count and hash it.

        Raises:
            UserError: a file cannot be read, is not UTF-8 text or a malformed table.
        """
        for path in self._files:
            file = first_pass(path, self._format, self._option, _NoticeCollector(path, self._by_notice))
            for piece in with_user_errors(file.pieces(), path, self._option):
                self._tally.add(piece)
                if piece.text:
                    yield piece
            self._size += file.size
            self._file_examples.append(len(self._tally.hashes) - sum(self._file_examples))
            self._file_digests.append(file.digest)
            self._digest.update(repr((file.digest, file.key)).encode())

    def corpus(self) -> Corpus:
        """Return what the files hold, after all pieces were read.

        Raises:
            UserError: no file has text.
        """
        tally, files = self._tally, self._files
        if not tally.hashes:
            raise _empty_error(files, self._size, self._option)
        notices = (f"{_file_names(paths)}: {notice}" for notice, paths in self._by_notice.items())
        return Corpus(
            files,
            tuple(self._file_digests),
            self._option,
            self._format,
            bytes=self._size,
            text_bytes=tally.text_bytes,
            learned_bytes=tally.learned_bytes,
            empty=tally.empty,
            garbled=tally.garbled,
            digest=self._digest.hexdigest(),
            hashes=np.array(tally.hashes),
            sizes=np.array(tally.sizes),
            file_examples=tuple(self._file_examples),
            notices=(*self._notices, *notices),
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
