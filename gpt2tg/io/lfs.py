"""Recognise Git LFS pointers: small text files that a clone without git-lfs has in place of large files."""

from __future__ import annotations

import re
from pathlib import Path

from gpt2tg.errors import UserError

# Git LFS was first called Hawser, and its first versions wrote that host.
FIRST_LINE = re.compile(rb"version https?://(?:git-lfs\.github|hawser\.github)\.com/spec/")

# Enough bytes to match the first line.
HEAD_BYTES = 64


def begins_pointer(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a Git LFS pointer."""
    return FIRST_LINE.match(head) is not None


def is_pointer(path: Path) -> bool:
    """Whether a file is a Git LFS pointer; False for a file that cannot be read."""
    try:
        if not path.is_file():  # opening a pipe would block
            return False
        with path.open("rb") as file:
            return begins_pointer(file.read(HEAD_BYTES))
    except OSError:
        return False


def refusal(path: Path, option: str | None = None) -> UserError:
    """Return the error for a file that is a Git LFS pointer."""
    return UserError(
        f"{path} is a Git LFS pointer, not the file itself: run git lfs pull in the clone it belongs to", option
    )


def refuse_pointer(path: Path, option: str | None = None) -> None:
    """Refuse a file that is a Git LFS pointer, before a reader reports it as broken.

    Raises:
        UserError: the file is a Git LFS pointer.
    """
    if is_pointer(path):
        raise refusal(path, option)
