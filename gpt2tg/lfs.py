"""Git LFS pointers: the few lines that a clone without git-lfs leaves in place of a large file."""

from __future__ import annotations

from pathlib import Path

from gpt2tg.errors import UserError

FIRST_LINE = b"version https://git-lfs.github.com/spec/"


def is_pointer(path: Path) -> bool:
    """Whether a file is a Git LFS pointer. A path that cannot be read is none."""
    try:
        if not path.is_file():  # opening a pipe would block
            return False
        with path.open("rb") as file:
            return file.read(len(FIRST_LINE)) == FIRST_LINE
    except OSError:
        return False


def refuse_pointer(path: Path, option: str | None = None) -> None:
    """Refuse a file that is only a pointer, before a reader calls it broken.

    Raises:
        UserError: the file is a Git LFS pointer.
    """
    if is_pointer(path):
        raise UserError(
            f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in the clone it belongs to", option
        )
