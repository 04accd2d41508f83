"""Tokenize a corpus once and keep the tokens on disk, in a directory named by what they were made from.

The dataset is written under another name, synced and sealed with checksums, and only then renamed, so that a directory
of the final name is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import Timeout

from gpt2tg.checkpoint.runs import MANIFEST
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.errors import RunError
from gpt2tg.io.atomic import sync
from gpt2tg.reading.plain_text import Piece
from gpt2tg.training.console import log
from gpt2tg.training.data import cache_directory
from gpt2tg.training.data.cache_limit import DRAFT, lease, lock_path, remove_least_used, remove_leftovers
from gpt2tg.training.data.corpus import Corpus
from gpt2tg.training.data.tokenization import encode_pieces, id_type
from gpt2tg.training.data.tokens import TOKENS_FILE, Tokens, open_tokens
from gpt2tg.training.output.durable import find_damage, seal
from gpt2tg.training.output.locks import system_lock

CACHE = cache_directory.default()

# Part of the name of cached tokens. Raise it when reading or tokenizing changes, or stale tokens would be used.
VERSION = 1

# What a directory of an earlier version holds: its tokens are made anew in its place, without a word.
EARLIER_FILE = "ids.bin"

# Writes the files of a directory, and returns what its manifest says about them.
Write = Callable[[Path], dict[str, Any]]


def tokenize(corpus: Corpus, tokenizer: TextTokenizer) -> Tokens:
    """Return the tokens of all examples, from the cache if they are there and undamaged.

    Raises:
        RunError: the cache cannot be written to.
        UserError: a file changed while it was read.
    """
    name = fingerprint(corpus.digest, tokenizer)
    if corpus.stream_digest is not None:
        streamed = fingerprint(corpus.stream_digest, tokenizer)
        in_use = lease(CACHE, streamed)
        if find_damage(CACHE / streamed, (TOKENS_FILE,)) is None:
            return open_tokens(CACHE / streamed, name, in_use)

    def write(directory: Path) -> dict[str, Any]:
        write_tokens(directory, corpus.pieces(), corpus.text_bytes, tokenizer)
        return {"text": corpus.name, "examples": corpus.examples, "text_bytes": corpus.text_bytes}

    return cached(name, write)


def cached(name: str, write: Write, required: tuple[str, ...] = ()) -> Tokens:
    """Return the tokens in a directory of the cache. If they are missing or damaged, `write` makes them.

    Args:
        required: files that the directory must have besides the tokens.

    Raises:
        RunError: the cache cannot be written to.
        UserError: as raised by `write`.
    """
    directory, required = CACHE / name, (TOKENS_FILE, *required)
    remove_leftovers(CACHE)
    try:
        in_use = lease(CACHE, name)
        if find_damage(directory, required) is not None:
            _make(directory, write, required)
        return open_tokens(directory, name, in_use)
    except OSError as error:
        raise RunError(
            f"cannot write the tokens to {CACHE}: {error}; set HF_HOME to a directory that can be written to"
        ) from None


def write_tokens(directory: Path, pieces: Iterator[Piece], text_bytes: int | None, tokenizer: TextTokenizer) -> None:
    """Tokenize pieces of text into the files of a directory.

    Args:
        text_bytes: of all pieces, for the progress bar; None if nobody knows.
    """
    from gpt2tg.training.data.token_builder import build_tokens  # imports datasets, which takes a second

    build_tokens(directory, encode_pieces(pieces, text_bytes, tokenizer), id_type(tokenizer))


def fingerprint(digest: str, tokenizer: TextTokenizer) -> str:
    """Return a hash of everything that tokens depend on: the text, the tokenizer and our version.

    Args:
        digest: a hash of the text.
    """
    found = hashlib.sha256(repr((VERSION, digest, tokenizer.end_id)).encode())
    found.update(tokenizer.raw.to_str().encode())
    if tokenizer.prefix or not tokenizer.encodes_in_parts:
        found.update(repr((tokenizer.prefix, tokenizer.encodes_in_parts)).encode())
    return found.hexdigest()[:32]


def _make(directory: Path, write: Write, required: tuple[str, ...]) -> None:
    """Tokenize into a draft directory and publish it. If several runs need the same tokens, one of them does so."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with _sole_writer(directory.name):
        fault = find_damage(directory, required)
        if fault is None:
            return  # another run made them while this one waited
        if (directory / MANIFEST).is_file() and not (directory / EARLIER_FILE).is_file():
            log.info(f"the tokens in {directory} are damaged, {fault}: tokenizing again")
        prefix = f"{DRAFT}{directory.name}-"
        with tempfile.TemporaryDirectory(dir=CACHE, prefix=prefix, ignore_cleanup_errors=True) as draft:
            complete = Path(draft) / "whole"
            complete.mkdir()
            seal(complete, write(complete))
            _publish(complete, directory)
    remove_least_used(CACHE, kept=directory.name)


def _publish(complete: Path, directory: Path) -> None:
    """Rename a sealed directory to its final name, in place of a damaged one."""
    try:
        if directory.exists():
            shutil.rmtree(directory)
        complete.rename(directory)
    except OSError:
        if find_damage(directory, (TOKENS_FILE,)) is not None:
            raise  # else the file system has no locks, and another run was faster
    sync(directory.parent)


@contextlib.contextmanager
def _sole_writer(name: str) -> Iterator[None]:
    """Wait until no other run writes these tokens.

    If the lock cannot be taken, as on a file system without locks, both write drafts of their own. A folder that cannot
    be written to is reported by the writing itself.
    """
    lock = system_lock(lock_path(CACHE, name))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another run that tokenizes the same text")
        lock.acquire()
    except OSError:
        pass
    try:
        yield
    finally:
        lock.release()
