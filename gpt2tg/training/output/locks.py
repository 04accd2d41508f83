"""Lock an output directory, so that only one run works in it."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from gpt2tg.errors import RunError, UserError

# Held while a run works in the directory. The second is for file systems without locks: a file that exists while the
# lock is held. It names the process, so that the file of a killed run does not count.
LOCK_FILES = LOCK_FILE, SOFT_LOCK_FILE = ".lock", ".lock-holder"

# The errors of file systems without locks.
NO_LOCKS = {getattr(errno, name, None) for name in ("ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOLCK", "EINVAL")}


def system_lock(path: Path) -> BaseFileLock:
    """Return the system's lock of a file. Taking it raises an OSError where the file system has none.

    filelock would take a file that exists for a lock there, and print a warning.
    """
    return FileLock(path, fallback_to_soft=False)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of an existing directory while the block runs.

    Raises:
        UserError: another run works in it.
        RunError: it cannot be written to.
    """
    try:
        lock = _acquire(directory)
    except Timeout:
        raise UserError(
            f"{directory} is in use by another training run: wait until it ends, or choose another", "output_dir"
        ) from None
    except OSError as error:
        raise RunError(f"cannot write to {directory}: {error}") from None
    try:
        yield
    finally:
        lock.release()


def _acquire(directory: Path) -> BaseFileLock:
    """Take the system's lock or, if the file system has none, the soft lock."""
    soft = SoftFileLock(directory / SOFT_LOCK_FILE)
    lock = system_lock(directory / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except OSError as error:
        if isinstance(error, Timeout) or error.errno not in NO_LOCKS:
            raise
        soft.acquire(timeout=0)
        return soft
    return lock
