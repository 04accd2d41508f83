"""The files that flags name to be written: checked before anything is computed, complete or as they were before.

A device, a pipe or an open descriptor (`/dev/stdout`, `>(gzip > x.gz)`) is written to and stays what it is. A link is
followed. Only the standard library is imported here, so that a file is refused before torch is loaded.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from gpt2tg.errors import RunError, UserError
from gpt2tg.options import PromptOptions

# Directories in which the names of open descriptors lie; the first one is Linux's.
DESCRIPTORS = (f"/proc/{os.getpid()}/fd", "/dev/fd")
# What stands for stdout, as it stands for stdin where a file is read.
STDOUT = Path("-")
# Links that lead to links, before they count as a circle.
MOST_LINKS = 40


def check_output(options: PromptOptions, say: Callable[[str], None], goes_on: bool = True) -> None:
    """Refuse an `--output` that cannot be written.

    Args:
        say: takes a line on what the person should know.
        goes_on: whether records that are there are gone on with.

    Raises:
        UserError: see `check_file`.
    """
    if options.output is None:
        return
    appends = goes_on and options.format == "jsonl" and not options.overwrite
    check_file(Path(options.output), "output", say, options.overwrite or appends, appends)


def check_file(
    path: Path, option: str | None, say: Callable[[str], None], may_replace: bool = False, appends: bool = False
) -> None:
    """Refuse a file that cannot be written, before anything is computed. What is there is not touched.

    Args:
        option: the flag that names the file, for messages; None where no flag does.
        say: takes a line on what the person should know.
        may_replace: whether a file that is there may change.
        appends: whether it grows instead of being replaced.

    Raises:
        UserError: the file is there and may not change, or the system refuses to write it.
    """
    try:
        if path.is_dir() or not target_of(path).parent.is_dir():
            raise UserError(f"{path} cannot be written: give a file in a directory that exists", option)
        if holds_something(path) and not may_replace:
            raise UserError(f"{path} is there already: choose another, or replace it with --overwrite", option)
        if is_stream(path):
            _check_stream(path, option, say)
        else:
            _try_to_write(target_of(path), appends)
            if not appends and path.exists() and (others := path.stat().st_nlink - 1):
                say(f"{path} has {others} other name{'s' * (others > 1)} (hard links), which keep what it held")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}", option) from None


def holds_something(path: Path) -> bool:
    """Whether something would be lost if this were replaced: a file is there, or a disk."""
    return _descriptor(path) is None and path.exists() and (path.is_file() or path.is_block_device())


def is_stream(path: Path) -> bool:
    """Whether this is no file of its own but a way to somewhere: a device, a pipe, an open descriptor."""
    return _descriptor(path) is not None or (path.exists() and not path.is_file())


def target_of(path: Path) -> Path:
    """The file that a link leads to, also where it is still to be made; a path that is no link, in full.

    Raises:
        OSError: the links lead in a circle.
    """
    with contextlib.suppress(FileNotFoundError):
        os.stat(path)  # fails where links lead in a circle, or through a file
    return Path(os.path.realpath(path))


def write_whole(path: Path, text: str) -> None:
    """Write a text to a file, completely or not at all, or to a stream.

    Raises:
        RunError: it cannot be written.
        BrokenPipeError: who reads the stream has seen enough.
    """
    with naming(path):
        if is_stream(path):
            with open_stream(path) as stream:
                write_all(stream, text)
        else:
            _replace(target_of(path), text)


def append_whole(path: Path, text: str) -> None:
    """Add a text to the end of a file, completely or not at all.

    Raises:
        RunError: it cannot be written.
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
    """Open a stream; a pipe waits until somebody reads it."""
    number = _descriptor(path)
    if number is None:
        return os.fdopen(os.open(path, os.O_WRONLY | getattr(os, "O_NOCTTY", 0)), "wb", buffering=0)
    if sys.stdout is not None:
        sys.stdout.flush()
    return os.fdopen(os.dup(number), "wb", buffering=0)


def write_all(file: BinaryIO, text: str) -> None:
    """Write a text to a file without a buffer, which may take a part of it at a time."""
    rest = memoryview(text.encode("utf-8", "surrogateescape"))
    while rest:
        rest = rest[file.write(rest) :]


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error of the system names the file; that nobody reads a pipe any more is none of ours."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from None


def _replace(target: Path, text: str) -> None:
    """Put a complete file in the place of another, with the mode and the owner of that one."""
    draft = _draft_of(target)
    try:
        with draft.open("xb", buffering=0) as file:
            write_all(file, text)
            os.fsync(file.fileno())
        if target.exists():
            _take_after(draft, target)
        draft.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def _draft_of(target: Path) -> Path:
    """A name beside a file that nobody has, and that is not too long where the file's own is not."""
    return target.with_name(f".{secrets.token_hex(4)}.partial")


def _take_after(draft: Path, target: Path) -> None:
    """Give a draft the owner, the mode and the extended attributes of a file, as far as the system lets us."""
    held = target.stat()
    with contextlib.suppress(OSError, AttributeError):  # another owner needs root; Windows has none
        os.chown(draft, held.st_uid, held.st_gid)
    with contextlib.suppress(OSError):
        shutil.copystat(target, draft)
        os.utime(draft)


def _try_to_write(target: Path, appends: bool) -> None:
    """Make and remove what writing the file will make.

    Raises:
        OSError: that cannot be.
    """
    if target.exists():
        os.close(os.open(target, os.O_WRONLY | os.O_APPEND))  # changes nothing, and is refused where it is protected
        if appends:
            return
    probe = _draft_of(target) if target.exists() else target
    os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    probe.unlink()


def _check_stream(path: Path, option: str | None, say: Callable[[str], None]) -> None:
    """Refuse a stream that cannot be opened for writing, without opening it: that alone may do something."""
    number = _descriptor(path)
    mode = os.stat(path if number is None else number).st_mode
    if stat.S_ISSOCK(mode) and number is None:
        raise UserError(f"{path} cannot be written: it is a socket", option)
    if number is not None:
        os.write(number, b"")  # is refused where it is open for reading alone
    elif not os.access(path, os.W_OK):
        raise UserError(f"{path} cannot be written: Permission denied", option)
    if stat.S_ISFIFO(mode) and number is None:
        say(f"{path} is a pipe: what is written waits until something reads it")


def _descriptor(path: Path) -> int | None:
    """The open descriptor that a name stands for, as `/dev/stdout` and `-` do for 1; None for any other name."""
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
