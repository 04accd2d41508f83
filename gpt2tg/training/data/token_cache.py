"""From examples to token ids, made once and kept on disk by the content they were made from."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from huggingface_hub.constants import HF_HOME
from tqdm import tqdm

from gpt2tg.checkpoint.runs import MANIFEST
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.errors import RunError
from gpt2tg.reading.plain_text import Piece
from gpt2tg.training.data.cache_directory import writable
from gpt2tg.training.data.sources import Corpus
from gpt2tg.training.output.durable import damage, seal, sync

CACHE = writable(Path(HF_HOME) / "gpt2tg" / "tokens")

# Part of the name of cached tokens: raise it whenever reading or tokenising changes, or old ones would be used.
VERSION = 1

# In the cache: the files of some tokens, folders of what is being written, and the locks of those who write.
IDS, LEARNED, ENDS = "ids.bin", "learned.bin", "ends.npy"
DRAFT, LOCKS = "unfinished-", "locks"

# Characters encoded in one call: the tokenizer spreads the examples over the cores.
ENCODE_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class Tokens:
    """The ids of all examples, one after the other, each with the end-of-text token at its end.

    Pickled, as for the workers of a data loader, they are the name of their files, which the other process opens.
    """

    ids: np.ndarray  # (N,) memory-mapped
    learned: np.ndarray | None  # (N,) bool, memory-mapped: whether an id carries loss; None where all do
    ends: np.ndarray  # (examples,) int64: where in `ids` each example ends
    fingerprint: str

    @property
    def starts(self) -> np.ndarray:
        """(examples,) where in `ids` each example starts."""
        return np.concatenate([[0], self.ends[:-1]])

    def __reduce__(self) -> tuple[object, ...]:
        return open_tokens, (Path(self.ids.filename).parent, self.ids.dtype)


def tokenize(found: Corpus, tokenizer: TextTokenizer) -> Tokens:
    """The tokens of all examples, from the cache where they are there as they were written.

    Raises:
        RunError: the cache cannot be written to.
        UserError: a file changed while it was read.
    """
    directory = CACHE / _fingerprint(found, tokenizer)
    _remove_leftovers()
    try:
        if damage(directory, (IDS, ENDS)) is not None:
            _make(directory, found, tokenizer)
    except OSError as error:
        raise RunError(f"cannot write the tokens to {CACHE}: {error}; HF_HOME names another place") from None
    return open_tokens(directory, _id_type(tokenizer))


def open_tokens(directory: Path, kind: np.dtype | type[np.unsignedinteger]) -> Tokens:
    """Memory-map the files of some tokens, whose ids are of this kind."""
    learned = directory / LEARNED
    return Tokens(
        ids=np.memmap(directory / IDS, kind, mode="r"),
        learned=np.memmap(learned, bool, mode="r") if learned.is_file() else None,
        ends=np.load(directory / ENDS),
        fingerprint=directory.name,
    )


def _make(directory: Path, found: Corpus, tokenizer: TextTokenizer) -> None:
    """Tokenize into a folder of another name, sync it to the disk with its checksums, and only then give it its name.

    Of several runs that want the same tokens one makes them, and the others wait.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    with _sole_writer(directory.name):
        fault = damage(directory, (IDS, ENDS))
        if fault is None:
            return
        if (directory / MANIFEST).is_file():  # earlier versions wrote none
            _say(f"the tokens in {directory} are damaged, {fault}: they are made anew")
        prefix = f"{DRAFT}{directory.name}-"
        with tempfile.TemporaryDirectory(dir=CACHE, prefix=prefix, ignore_cleanup_errors=True) as draft:
            whole = Path(draft) / "whole"
            whole.mkdir()
            _write(whole, found, tokenizer)
            seal(whole, {})
            _publish(whole, directory)


def _publish(whole: Path, directory: Path) -> None:
    """Give sealed files their name, in place of damaged ones."""
    try:
        if directory.exists():
            shutil.rmtree(directory)
        whole.rename(directory)
    except OSError:
        if damage(directory, (IDS, ENDS)) is not None:
            raise  # else another run was faster, where there are no locks
    sync(directory.parent)


@contextlib.contextmanager
def _sole_writer(name: str) -> Iterator[None]:
    """Wait until no other run writes these tokens. Where the file system has no locks, both write, each for itself."""
    lock = FileLock(_lock_of(name))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _say("waiting for another run that tokenizes the same text")
        lock.acquire()
    except (OSError, NotImplementedError):
        pass
    try:
        yield
    finally:
        lock.release()


def _say(text: str) -> None:
    from gpt2tg.training.callbacks import say  # imports transformers, which workers of a data loader do without

    say(text)


def _lock_of(name: str) -> Path:
    (CACHE / LOCKS).mkdir(parents=True, exist_ok=True)
    return CACHE / LOCKS / name


def _remove_leftovers() -> None:
    """Remove what runs that were killed had not finished. Of a run that still writes, the lock cannot be had."""
    for draft in CACHE.glob(f"{DRAFT}*"):
        name = draft.name.removeprefix(DRAFT).partition("-")[0]
        with contextlib.suppress(Timeout, OSError, NotImplementedError), FileLock(_lock_of(name), timeout=0):
            shutil.rmtree(draft, ignore_errors=True)


def _write(directory: Path, found: Corpus, tokenizer: TextTokenizer) -> None:
    ends, length, all_learned = array("q"), 0, True
    with (directory / IDS).open("wb") as ids_file, (directory / LEARNED).open("wb") as learned_file:
        for piece, ids in token_runs(found, tokenizer):
            ids_file.write(ids.tobytes())
            learned_file.write(bytes([piece.learned]) * len(ids))
            all_learned = all_learned and piece.learned
            length += len(ids)
            if piece.ends:
                ends.append(length)
    if all_learned:
        (directory / LEARNED).unlink()
    np.save(directory / ENDS, np.array(ends))


def token_runs(found: Corpus, tokenizer: TextTokenizer) -> Iterator[tuple[Piece, np.ndarray]]:
    """Each piece of text with its ids. An example begins with what the tokenizer puts before a text, and ends with the
    end-of-text token."""
    kind, begins = _id_type(tokenizer), True
    with tqdm(total=found.text_bytes, desc="tokenizing", unit="B", unit_scale=True, leave=False, disable=None) as bar:
        for batch in _batches(found.pieces()):
            for piece, ids in zip(batch, _encode(batch, begins, tokenizer), strict=True):
                before = tokenizer.prefix if begins else ()
                yield piece, np.array([*before, *ids, tokenizer.end_id] if piece.ends else [*before, *ids], kind)
                begins = piece.ends
            bar.update(sum(len(piece.text.encode()) for piece in batch))


def _encode(batch: Sequence[Piece], begins: bool, tokenizer: TextTokenizer) -> list[list[int]]:
    """The ids of each piece; `begins` where the first begins an example."""
    follows = [not begins, *(not piece.ends for piece in batch[:-1])]
    continues = [later and not tokenizer.encodes_in_parts for later in follows]
    texts = [piece.text for piece, later in zip(batch, continues, strict=True) if not later]
    encoded = iter(tokenizer.raw.encode_batch_fast(texts, add_special_tokens=False))
    return [
        tokenizer.encode(piece.text, continues=True) if later else next(encoded).ids
        for piece, later in zip(batch, continues, strict=True)
    ]


def _batches(stream: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Pieces to encode in one call, enough to keep the cores busy and bounded in characters."""
    batch: list[Piece] = []
    size = 0
    for piece in stream:
        batch.append(piece)
        size += len(piece.text)
        if size >= ENCODE_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _id_type(tokenizer: TextTokenizer) -> type[np.unsignedinteger]:
    """Two bytes hold every id of GPT-2's own tokenizer, and half as much is read from disk."""
    largest = max(tokenizer.end_id, *tokenizer.raw.get_vocab().values())
    return np.uint16 if largest < 1 << 16 else np.uint32


def _fingerprint(found: Corpus, tokenizer: TextTokenizer) -> str:
    """Names the tokens by all that they depend on, the text itself included."""
    digest = hashlib.sha256(repr((VERSION, found.digest, tokenizer.end_id)).encode())
    digest.update(tokenizer.raw.to_str().encode())
    if tokenizer.prefix or not tokenizer.encodes_in_parts:
        digest.update(repr((tokenizer.prefix, tokenizer.encodes_in_parts)).encode())
    return digest.hexdigest()[:32]
