"""Choose the directory of the token cache: next to the models of the hub, or the first other place that is writable."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from huggingface_hub.constants import HF_HOME

from gpt2tg.errors import one_line


def default() -> Path:
    """Return the directory of the token cache."""
    return writable(Path(HF_HOME) / "gpt2tg" / "tokens")


def writable(first: Path) -> Path:
    """Return the first directory that can be written to, of `first`, the user's cache and the temporary directory.

    A container image may bring its models in a read-only directory, and the home directory may be read-only too. No
    directory is created. The one in the temporary directory is used only if it belongs to this user alone.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    user = os.getuid() if hasattr(os, "getuid") else one_line(os.environ.get("USERNAME", "user"))
    last = Path(tempfile.gettempdir()) / f"gpt2tg-{user}"
    candidates = [first, home / "gpt2tg" / "tokens"]
    if not last.exists() or _is_private(last):
        candidates.append(last / "tokens")
    return next((directory for directory in candidates if _is_writable(directory)), first)


def _is_private(directory: Path) -> bool:
    """Whether the directory belongs to this user, and not everyone may write to it."""
    status = directory.stat(follow_symlinks=False)
    return not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o002)


def _is_writable(directory: Path) -> bool:
    """Whether the directory, or its nearest parent that exists, can be written to."""
    try:
        existing = next(path for path in (directory, *directory.parents) if path.exists())
        tempfile.TemporaryFile(dir=existing).close()
    except OSError:
        return False
    return True
