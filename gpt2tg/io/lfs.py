"""Git LFS pointers: the few lines that a clone without git-lfs leaves in place of a large file."""

from __future__ import annotations

import re
from pathlib import Path

from gpt2tg.errors import UserError

# The second host is that of its first versions, which were called so.
FIRST_LINE = re.compile(rb"version https?://(?:git-lfs\.github|hawser\.github)\.com/spec/")

# Enough to recognise one by.
HEAD_BYTES = 64


def begins_pointer(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a Git LFS pointer."""
    return FIRST_LINE.match(head) is not None


def is_pointer(path: Path) -> bool:
    """Whether a file is a Git LFS pointer. A path that cannot be read is none."""
    try:
        if not path.is_file():  # opening a pipe would block
            return False
        with path.open("rb") as file:
            return begins_pointer(file.read(HEAD_BYTES))
    except OSError:
        return False


def refusal(path: Path, option: str | None = None) -> UserError:
    """What to tell of a file that is only a pointer."""
    return UserError(
        f"{path} is a Git LFS pointer, not the file itself: run git lfs pull in the clone it belongs to", option
    )


def refuse_pointer(path: Path, option: str | None = None) -> None:
    """Refuse a file that is only a pointer, before a reader calls it broken.

    Raises:
        UserError: the file is a Git LFS pointer.
    """
    if is_pointer(path):
        raise refusal(path, option)
