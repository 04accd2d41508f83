"""Show the cache of tokenized texts, or clear it: `python -m gpt2tg.cache [--clear]`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from gpt2tg.errors import UserError
from gpt2tg.io.tables import aligned
from gpt2tg.training.data.cache_directory import default
from gpt2tg.training.data.cache_limit import (
    DRAFT,
    LIMIT_VARIABLE,
    CachedTokens,
    limit_bytes,
    list_cache,
    remove,
    remove_leftovers,
)

DESCRIPTION = f"""\
Show the texts whose tokens are kept for the next run, or remove them. A run removes tokens by itself, those first that
were not used for the longest time, when the cache is over its limit: {LIMIT_VARIABLE}, in GB.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Show or clear the cache, and return the exit code."""
    parser = argparse.ArgumentParser("python -m gpt2tg.cache", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--clear", action="store_true", help="remove all tokens but those that a run is using")
    clears = parser.parse_args(argv).clear
    try:
        for line in _clear(default()) if clears else _show(default()):
            print(line)
    except UserError as error:
        print(f"gpt2tg.cache: error: {error}", file=sys.stderr)
        return 2
    return 0


def _show(cache: Path) -> Iterator[str]:
    found = list_cache(cache)
    size = sum(tokens.bytes for tokens in found)
    yield f"{cache}: {_shown_size(size)} of at most {_shown_size(limit_bytes())} ({LIMIT_VARIABLE})"
    if found:
        yield ""
        yield from aligned([("size", "last used", "text"), *map(_row, reversed(found))], left=(1, 2))


def _row(tokens: CachedTokens) -> tuple[str, str, str]:
    is_draft = tokens.name.startswith(DRAFT)
    text = "not complete: a run is writing it, or was killed" if is_draft else str(tokens.facts.get("text", "unknown"))
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(tokens.last_used))
    return _shown_size(tokens.bytes), used, text


def _clear(cache: Path) -> Iterator[str]:
    found = list_cache(cache)
    remove_leftovers(cache)
    gone = [tokens for tokens in found if (not tokens.name.startswith(DRAFT) and remove(tokens)) or not tokens.exists]
    yield f"removed {_shown_size(sum(tokens.bytes for tokens in gone))} from {cache}"
    if left := len(found) - len(gone):
        yield f"{left} of {len(found)} texts stay: a run is using them, or this folder lets nobody lock or remove them"


def _shown_size(size: float) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e7 or not size else f"{size / 1e6:,.2f} MB"


if __name__ == "__main__":
    sys.exit(main())
