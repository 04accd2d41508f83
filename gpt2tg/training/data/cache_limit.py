"""Keep the token cache within its limit: remove what was not used for the longest time, and nothing that is in use."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2tg.checkpoint.runs import MANIFEST
from gpt2tg.errors import UserError
from gpt2tg.training.console import log
from gpt2tg.training.output.durable import read_manifest
from gpt2tg.training.output.locks import system_lock

# In the cache: the prefix of directories that are written or removed, and the directory of locks.
DRAFT, LOCKS = "unfinished-", "locks"

# In the names of locks: between the name of the tokens and a random part, one for each use of the tokens.
USE = ".use-"

# The variable that sets the limit, and the limit if it is not set. 20 GB are ten thousand million tokens of GPT-2.
LIMIT_VARIABLE, DEFAULT_LIMIT_GB = "GPT2TG_CACHE_GB", 20.0

GIGABYTE = 10**9


@dataclass(frozen=True)
class CachedTokens:
    """The directory of one text's tokens in the cache."""

    directory: Path
    bytes: int
    last_used: float  # seconds since 1970

    @property
    def name(self) -> str:
        """The name of the directory."""
        return self.directory.name

    @property
    def exists(self) -> bool:
        """Whether the directory is still there."""
        return self.directory.exists()

    @property
    def facts(self) -> dict[str, Any]:
        """What the manifest says about the text; nothing if it cannot be read."""
        try:
            return read_manifest(self.directory)
        except (OSError, ValueError):
            return {}


def limit_bytes() -> float:
    """Return the largest size that the cache may have.

    Raises:
        UserError: the variable that sets it is not a number.
    """
    text = os.environ.get(LIMIT_VARIABLE, str(DEFAULT_LIMIT_GB))
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not limit >= 0:
        raise UserError(f"{LIMIT_VARIABLE}={text} is not a size in GB: set it to a number, or unset it")
    return limit * GIGABYTE


def list_cache(cache: Path) -> list[CachedTokens]:
    """Return the tokens in the cache, the least recently used first."""
    found = (_cached_tokens(path) for path in cache.glob("*") if path.name != LOCKS and path.is_dir())
    return sorted((tokens for tokens in found if tokens is not None), key=lambda tokens: tokens.last_used)


def _cached_tokens(directory: Path) -> CachedTokens | None:
    """Return the size and age of a directory; None if another process removes it meanwhile."""
    try:
        size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        manifest = directory / MANIFEST
        last_used = (manifest if manifest.is_file() else directory).stat().st_mtime
    except OSError:
        return None
    return CachedTokens(directory, size, last_used)


def remove_least_used(cache: Path, kept: str) -> None:
    """Remove tokens, the least recently used first, until the cache is within its limit. Says so in the log.

    Args:
        kept: the name of tokens that stay.
    """
    found, limit = list_cache(cache), limit_bytes()
    size = sum(tokens.bytes for tokens in found)
    removed = 0
    for tokens in found:
        if size <= limit:
            break
        if tokens.name != kept and not tokens.name.startswith(DRAFT) and remove(tokens):
            size -= tokens.bytes
            removed += tokens.bytes
    if removed:
        log.info(
            f"removed {removed / GIGABYTE:.1f} GB of tokens that were not used for the longest time: "
            f"{cache} may have {limit / GIGABYTE:g} GB ({LIMIT_VARIABLE})"
        )


def remove(tokens: CachedTokens) -> bool:
    """Remove tokens from the cache unless a run uses them, and return whether they are gone."""
    cache = tokens.directory.parent
    if _is_in_use(cache, tokens.name):
        return False
    aside = cache / f"{DRAFT}{tokens.name}-removed-{secrets.token_hex(4)}"
    try:
        tokens.directory.rename(aside)
        if _is_in_use(cache, tokens.name):  # a run has just begun to
            aside.rename(tokens.directory)
            return False
    except OSError:  # on Windows, a file that another program has open
        return False
    shutil.rmtree(aside, ignore_errors=True)
    return True


def remove_leftovers(cache: Path) -> None:
    """Remove the drafts of runs that were killed. The lock of a run that is still writing cannot be acquired.

    On a file system without locks all drafts stay: nothing tells which of them is still written to.
    """
    for draft in cache.glob(f"{DRAFT}*"):
        name = draft.name.removeprefix(DRAFT).partition("-")[0]
        with contextlib.suppress(OSError), system_lock(lock_path(cache, name)).acquire(timeout=0):
            shutil.rmtree(draft, ignore_errors=True)


def lease(cache: Path, name: str) -> object:
    """Keep tokens from being removed as long as the returned object exists. Also notes that they are used now.

    Where nothing can be written or locked, nothing keeps them.
    """
    with contextlib.suppress(OSError):
        os.utime(cache / name / MANIFEST)
    with contextlib.suppress(OSError):
        lock = system_lock(lock_path(cache, f"{name}{USE}{secrets.token_hex(4)}"))
        lock.acquire(timeout=0)
        return lock
    return None


def _is_in_use(cache: Path, name: str) -> bool:
    """Whether a run holds a lease of the tokens. Leases of runs that have ended are deleted."""
    return any(_is_held(path) for path in _leases(cache, name))


def _leases(cache: Path, name: str) -> Iterator[Path]:
    return (cache / LOCKS).glob(f"{name}{USE}*")


def _is_held(path: Path) -> bool:
    """Whether a process holds a lock. Where that cannot be found out, it counts as held: tokens rather stay."""
    try:
        with system_lock(path).acquire(timeout=0):
            path.unlink(missing_ok=True)
    except OSError:  # filelock's Timeout is one
        return True
    return False


def lock_path(cache: Path, name: str) -> Path:
    """Return the path of a lock file, in a directory that exists."""
    (cache / LOCKS).mkdir(parents=True, exist_ok=True)
    return cache / LOCKS / name
