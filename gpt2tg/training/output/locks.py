"""One run per directory: a lock that is held as long as a run works there."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from gpt2tg.errors import RunError, UserError

# Held as long as a run works in the directory. The second is a file that is there while the lock is held, for file
# systems without locks; it names the process, so that one left by a killed run counts for nothing.
LOCK_FILES = LOCK_FILE, SOFT_LOCK_FILE = ".lock", ".lock-holder"

# What such file systems answer.
NO_LOCKS = {getattr(errno, name, None) for name in ("ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOLCK", "EINVAL")}


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other runs out of a directory that exists.

    Raises:
        UserError: another run works in it.
        RunError: it cannot be written to.
    """
    try:
        lock = _acquired(directory)
    except Timeout:
        raise UserError(
            f"{directory} is in use by another training run: wait for its end, or choose another", "output_dir"
        ) from None
    except OSError as error:
        raise RunError(f"cannot write to {directory}: {error}") from None
    try:
        yield
    finally:
        lock.release()


def _acquired(directory: Path) -> BaseFileLock:
    """Both kinds of lock are asked, for two machines may know one directory by different file systems."""
    soft = SoftFileLock(directory / SOFT_LOCK_FILE)
    lock = FileLock(directory / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except (OSError, NotImplementedError) as error:
        if isinstance(error, Timeout) or (isinstance(error, OSError) and error.errno not in NO_LOCKS):
            raise
        soft.acquire(timeout=0)
        return soft
    return lock
