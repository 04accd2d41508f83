"""Tokenize a corpus once and keep the ids on disk, in a directory named by what they were made from.

The files are memory-mapped. They are written under another name, synced and sealed with checksums, and only then
renamed, so that a directory of the final name is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from huggingface_hub.constants import HF_HOME

from gpt2tg.checkpoint.runs import MANIFEST
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.errors import RunError
from gpt2tg.io.atomic import sync
from gpt2tg.training.console import log
from gpt2tg.training.data.cache_directory import writable
from gpt2tg.training.data.corpus import Corpus
from gpt2tg.training.data.tokenization import encode_corpus, id_type
from gpt2tg.training.output.durable import find_damage, seal

CACHE = writable(Path(HF_HOME) / "gpt2tg" / "tokens")

# Part of the name of cached tokens. Raise it when reading or tokenizing changes, or stale tokens would be used.
VERSION = 1

# The files of one directory.
IDS, LEARNED, ENDS = "ids.bin", "learned.bin", "ends.npy"

# In the cache: the prefix of directories being written, and the directory of the writers' locks.
DRAFT, LOCKS = "unfinished-", "locks"


@dataclass(frozen=True)
class Tokens:
    """The ids of all examples, one after the other, each example followed by the end-of-text token.

    Only the path is pickled: the workers of a data loader map the files themselves.
    """

    ids: np.memmap  # (N,)
    learned: np.memmap | None  # (N,) bool: whether an id carries loss; None if all do
    ends: np.ndarray  # (examples,) int64: where in `ids` each example ends
    fingerprint: str

    @property
    def starts(self) -> np.ndarray:
        """(examples,) where in `ids` each example starts."""
        return np.concatenate([[0], self.ends[:-1]])

    def __reduce__(self) -> tuple[object, ...]:
        return open_tokens, (Path(str(self.ids.filename)).parent, self.ids.dtype)


def tokenize(corpus: Corpus, tokenizer: TextTokenizer) -> Tokens:
    """Return the tokens of all examples, from the cache if they are there and undamaged.

    Raises:
        RunError: the cache cannot be written to.
        UserError: a file changed while it was read.
    """
    directory = CACHE / _fingerprint(corpus, tokenizer)
    _remove_leftovers()
    try:
        if find_damage(directory, (IDS, ENDS)) is not None:
            _make(directory, corpus, tokenizer)
    except OSError as error:
        raise RunError(
            f"cannot write the tokens to {CACHE}: {error}; set HF_HOME to a directory that can be written to"
        ) from None
    return open_tokens(directory, id_type(tokenizer))


def open_tokens(directory: Path, dtype: np.dtype | type[np.unsignedinteger]) -> Tokens:
    """Memory-map the files in a directory of the cache.

    Args:
        dtype: of the ids.
    """
    learned = directory / LEARNED
    return Tokens(
        ids=np.memmap(directory / IDS, dtype, mode="r"),
        learned=np.memmap(learned, bool, mode="r") if learned.is_file() else None,
        ends=np.load(directory / ENDS),
        fingerprint=directory.name,
    )


def _make(directory: Path, corpus: Corpus, tokenizer: TextTokenizer) -> None:
    """Tokenize into a draft directory and publish it. If several runs need the same tokens, one of them does so."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with _sole_writer(directory.name):
        fault = find_damage(directory, (IDS, ENDS))
        if fault is None:
            return  # another run made them while this one waited
        if (directory / MANIFEST).is_file():  # earlier versions wrote none
            log.info(f"the tokens in {directory} are damaged, {fault}: tokenizing again")
        prefix = f"{DRAFT}{directory.name}-"
        with tempfile.TemporaryDirectory(dir=CACHE, prefix=prefix, ignore_cleanup_errors=True) as draft:
            complete = Path(draft) / "whole"
            complete.mkdir()
            _write(complete, corpus, tokenizer)
            seal(complete, {})
            _publish(complete, directory)


def _publish(complete: Path, directory: Path) -> None:
    """Rename a sealed directory to its final name, in place of a damaged one."""
    try:
        if directory.exists():
            shutil.rmtree(directory)
        complete.rename(directory)
    except OSError:
        if find_damage(directory, (IDS, ENDS)) is not None:
            raise  # else the file system has no locks, and another run was faster
    sync(directory.parent)


@contextlib.contextmanager
def _sole_writer(name: str) -> Iterator[None]:
    """Wait until no other run writes these tokens.

    If the lock cannot be taken, as on a file system without locks, both write drafts of their own. A folder that cannot
    be written to is reported by the writing itself.
    """
    lock = FileLock(_lock_path(name))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another run that tokenizes the same text")
        lock.acquire()
    except (OSError, NotImplementedError):
        pass
    try:
        yield
    finally:
        lock.release()


def _lock_path(name: str) -> Path:
    (CACHE / LOCKS).mkdir(parents=True, exist_ok=True)
    return CACHE / LOCKS / name


def _remove_leftovers() -> None:
    """Remove the drafts of runs that were killed. The lock of a run that is still writing cannot be acquired.

    On a file system without locks all drafts stay: nothing tells which of them is still written to.
    """
    for draft in CACHE.glob(f"{DRAFT}*"):
        name = draft.name.removeprefix(DRAFT).partition("-")[0]
        with contextlib.suppress(OSError, NotImplementedError), FileLock(_lock_path(name), timeout=0):
            shutil.rmtree(draft, ignore_errors=True)


def _write(directory: Path, corpus: Corpus, tokenizer: TextTokenizer) -> None:
    """Tokenize the corpus into the files of a directory. The file of learned tokens is left out if all are learned."""
    ends, length, all_learned = array("q"), 0, True
    with (directory / IDS).open("wb") as ids_file, (directory / LEARNED).open("wb") as learned_file:
        for piece, ids in encode_corpus(corpus, tokenizer):
            ids_file.write(ids.tobytes())
            learned_file.write(bytes([piece.learned]) * len(ids))
            all_learned = all_learned and piece.learned
            length += len(ids)
            if piece.ends:
                ends.append(length)
    if all_learned:
        (directory / LEARNED).unlink()
    np.save(directory / ENDS, np.array(ends))


def _fingerprint(corpus: Corpus, tokenizer: TextTokenizer) -> str:
    """Return a hash of everything the tokens depend on: the text, the tokenizer and our version."""
    digest = hashlib.sha256(repr((VERSION, corpus.digest, tokenizer.end_id)).encode())
    digest.update(tokenizer.raw.to_str().encode())
    if tokenizer.prefix or not tokenizer.encodes_in_parts:
        digest.update(repr((tokenizer.prefix, tokenizer.encodes_in_parts)).encode())
    return digest.hexdigest()[:32]
