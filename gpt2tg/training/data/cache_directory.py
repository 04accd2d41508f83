"""Where tokens are kept between runs: beside the models of the hub, or where one may write."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from gpt2tg.errors import one_line


def writable(first: Path) -> Path:
    """The first of some folders that can be written to; none is made.

    Images bring their models along in a folder that is read-only; a home may be too. What lies in the folder of
    temporary files belongs to this user alone.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    user = os.getuid() if hasattr(os, "getuid") else one_line(os.environ.get("USERNAME", "user"))
    last = Path(tempfile.gettempdir()) / f"gpt2tg-{user}"
    choices = [first, home / "gpt2tg" / "tokens"]
    if not last.exists() or _is_private(last):
        choices.append(last / "tokens")
    return next((folder for folder in choices if _can_be_written(folder)), first)


def _is_private(folder: Path) -> bool:
    """Whether nobody else can put anything there."""
    status = folder.stat(follow_symlinks=False)
    return not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o002)


def _can_be_written(folder: Path) -> bool:
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        tempfile.TemporaryFile(dir=there).close()
    except OSError:
        return False
    return True
