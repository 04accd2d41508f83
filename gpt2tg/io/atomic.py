"""Write files so that they are complete or as they were before, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

# The errors of systems that cannot sync a folder: network mounts, and file systems in user space.
NO_FOLDER_SYNC = {
    getattr(errno, name, None)
    for name in ("EINVAL", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EBADF", "EACCES", "EPERM", "EISDIR")
}


@contextlib.contextmanager
def replacing(target: Path, draft: Path | None = None, keep_attributes: bool = False) -> Iterator[Path]:
    """Yield the path of a draft; when the block ends, sync the draft and let it take the place of `target`.

    If the block raises, the draft is deleted and `target` stays as it was.

    Args:
        draft: in the directory of `target`; None for a name that no other file has.
        keep_attributes: whether the new file gets owner, mode and extended attributes of the one that it replaces.
    """
    draft = draft or draft_beside(target)
    try:
        yield draft
        sync(draft)
        if keep_attributes and target.exists():
            _copy_attributes(target, draft)
        draft.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def _copy_attributes(source: Path, target: Path) -> None:
    """Copy owner, mode and extended attributes of a file, as far as the system allows it."""
    held = source.stat()
    with contextlib.suppress(OSError, AttributeError):  # another owner needs root; Windows has none
        os.chown(target, held.st_uid, held.st_gid)
    with contextlib.suppress(OSError):
        shutil.copystat(source, target)
        os.utime(target)


def draft_beside(target: Path) -> Path:
    """Return an unused name in the directory of a file. It is short, so that no system refuses it for its length."""
    return target.with_name(f".{secrets.token_hex(4)}.partial")


def sync(path: Path) -> None:
    """Have the system write a file or a folder to the disk now. Systems that cannot sync a folder do nothing.

    Raises:
        OSError: the disk is full or broken.
    """
    if not path.is_dir():
        _fsync(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    elif os.name != "nt":
        try:
            _fsync(path, os.O_RDONLY)
        except OSError as error:
            if error.errno not in NO_FOLDER_SYNC:
                raise


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
