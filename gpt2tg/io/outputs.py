"""Check and write the output files that flags name: refused before anything is computed, then written atomically.

A device, a pipe or an open descriptor (`/dev/stdout`, `>(gzip > x.gz)`) is written to and never replaced. A symbolic
link is followed. Only the standard library is imported here, so that a file is refused before torch is imported.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from gpt2tg.errors import RunError, UserError
from gpt2tg.io.atomic import draft_beside, replacing

# Directories that hold the open descriptors of this process under their numbers; the first one is Linux's.
DESCRIPTORS = (f"/proc/{os.getpid()}/fd", "/dev/fd")
# `-` stands for stdout here, and for stdin where a file is read.
STDOUT = Path("-")
# The longest chain of symbolic links that is followed; a longer one is taken for a circle.
MOST_LINKS = 40


def check_file(
    path: Path, option: str | None, say: Callable[[str], None], may_replace: bool = False, appends: bool = False
) -> None:
    """Refuse an output file that cannot be written, before anything is computed. An existing file is not changed.

    Args:
        option: the flag that names the file, for messages; None if no flag does.
        say: takes a line that the user should know.
        may_replace: whether an existing file may be replaced or appended to.
        appends: whether the file will be appended to instead of replaced.

    Raises:
        UserError: the file exists and may not be changed, or the system refuses to write it.
    """
    try:
        if path.is_dir() or not target_of(path).parent.is_dir():
            raise UserError(f"{path} cannot be written: give a file in a directory that exists", option)
        if holds_something(path) and not may_replace:
            raise UserError(f"{path} exists already: choose another, or replace it with --overwrite", option)
        if is_stream(path):
            _check_stream(path, option, say)
        else:
            _try_to_write(target_of(path), appends)
            if not appends and path.exists() and (others := path.stat().st_nlink - 1):
                say(f"{path} has {others} other name{'s' * (others > 1)} (hard links), which keep the old content")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}", option) from None


def holds_something(path: Path) -> bool:
    """Whether replacing this path would destroy something: it is a file, or a disk."""
    return _descriptor(path) is None and path.exists() and (path.is_file() or path.is_block_device())


def is_stream(path: Path) -> bool:
    """Whether the path is a device, a pipe or an open descriptor, not a regular file."""
    return _descriptor(path) is not None or (path.exists() and not path.is_file())


def target_of(path: Path) -> Path:
    """Return the absolute path of the file that a symbolic link leads to, whether it exists or not; others as they are.

    Raises:
        OSError: the links form a circle.
    """
    with contextlib.suppress(FileNotFoundError):
        os.stat(path)  # fails if links form a circle, or lead through a file
    return Path(os.path.realpath(path))


def write_whole(path: Path, text: str) -> None:
    """Write a text to a file atomically, or to a stream.

    Raises:
        RunError: it cannot be written; a file is as it was before.
        BrokenPipeError: the reader has closed the stream.
    """
    with naming(path):
        if is_stream(path):
            with open_stream(path) as stream:
                write_all(stream, text)
            return
        with replacing(target_of(path), keep_attributes=True) as draft, draft.open("xb", buffering=0) as file:
            write_all(file, text)


def append_whole(path: Path, text: str) -> None:
    """Append a text to a file, completely or not at all.

    Raises:
        RunError: it cannot be written; the file is as it was before.
    """
    with naming(path), path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            write_all(file, text)
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise


def open_stream(path: Path) -> BinaryIO:
    """Open a stream for writing; for a pipe, wait until a reader opens it."""
    number = _descriptor(path)
    if number is None:
        return os.fdopen(os.open(path, os.O_WRONLY | getattr(os, "O_NOCTTY", 0)), "wb", buffering=0)
    if sys.stdout is not None:
        sys.stdout.flush()
    return os.fdopen(os.dup(number), "wb", buffering=0)


def write_all(file: BinaryIO, text: str) -> None:
    """Write a text to an unbuffered file, of which each write may take a part only."""
    rest = memoryview(text.encode("utf-8", "surrogateescape"))
    while rest:
        rest = rest[file.write(rest) :]


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn errors of the system into a RunError that names the file; pass on that a pipe is closed."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from None


def _try_to_write(target: Path, appends: bool) -> None:
    """Create and delete what writing the file will create.

    Raises:
        OSError: the system refuses it.
    """
    if target.exists():
        os.close(os.open(target, os.O_WRONLY | os.O_APPEND))  # changes nothing, and fails if the file is protected
        if appends:
            return
    probe = draft_beside(target) if target.exists() else target
    os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    probe.unlink()


def _check_stream(path: Path, option: str | None, say: Callable[[str], None]) -> None:
    """Refuse a stream that cannot be written to, without opening it: opening alone may have an effect."""
    number = _descriptor(path)
    mode = os.stat(path if number is None else number).st_mode
    if stat.S_ISSOCK(mode) and number is None:
        raise UserError(f"{path} cannot be written: it is a socket", option)
    if number is not None:
        os.write(number, b"")  # fails if it is open for reading alone
    elif not os.access(path, os.W_OK):
        raise UserError(f"{path} cannot be written: Permission denied", option)
    if stat.S_ISFIFO(mode) and number is None:
        say(f"{path} is a pipe: writing waits until something reads it")


def _descriptor(path: Path) -> int | None:
    """Return the open descriptor that a path stands for, as `/dev/stdout` and `-` do for 1; None for other paths."""
    if path == STDOUT:
        return 1
    seen = path
    for _ in range(MOST_LINKS):
        folder = os.path.realpath(seen.parent)
        if folder in DESCRIPTORS and seen.name.isdecimal():
            return int(seen.name)
        if not seen.is_symlink():
            return None
        seen = Path(folder, os.readlink(seen))
    return None
