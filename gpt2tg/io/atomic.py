"""Replace files atomically: whatever happens, a reader finds the old file or the complete new one."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

# Errors of file systems that cannot sync a directory: network mounts, file systems in user space.
NO_DIRECTORY_SYNC = {
    getattr(errno, name, None)
    for name in ("EINVAL", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EBADF", "EACCES", "EPERM", "EISDIR")
}


@contextlib.contextmanager
def atomic_replacement(target: Path, draft: Path) -> Iterator[Path]:
    """Yield `draft`, a path beside `target`, to be written; then sync it to the disk and rename it to `target`.

    If the block fails, the draft is removed and the target stays as it was. A kill may leave the draft.
    """
    try:
        yield draft
        sync(draft)
        draft.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Flush a file or a directory to the disk. Directories are skipped where the system cannot sync them."""
    if not path.is_dir():
        _fsync(path, os.O_RDWR | getattr(os, "O_BINARY", 0) if os.name == "nt" else os.O_RDONLY)
    elif os.name != "nt":
        try:
            _fsync(path, os.O_RDONLY)
        except OSError as error:
            if error.errno not in NO_DIRECTORY_SYNC:
                raise


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
