"""From examples to token ids, made once and kept on disk by the content they were made from."""

from __future__ import annotations

import hashlib
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from huggingface_hub.constants import HF_HOME
from tqdm import tqdm

from gpt2tg.engine.tokenizer import TextTokenizer
from gpt2tg.errors import RunError
from gpt2tg.training.cache import writable
from gpt2tg.training.sources import Survey
from gpt2tg.training.text import Piece

CACHE = writable(Path(HF_HOME) / "gpt2tg" / "tokens")

# Part of the name of cached tokens: raise it whenever reading or tokenising changes, or old ones would be used.
VERSION = 2

# Characters encoded in one call: the tokenizer spreads the examples over the cores.
ENCODE_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class Tokens:
    """The ids of all examples, one after the other, each with the end-of-text token at its end."""

    ids: np.ndarray  # (N,) memory-mapped
    learned: np.ndarray | None  # (N,) bool, memory-mapped: whether an id carries loss; None where all do
    ends: np.ndarray  # (examples,) int64: where in `ids` each example ends
    fingerprint: str

    @property
    def starts(self) -> np.ndarray:
        """(examples,) where in `ids` each example starts."""
        return np.concatenate([[0], self.ends[:-1]])


def tokenize(found: Survey, tokenizer: TextTokenizer) -> Tokens:
    """The tokens of all examples, from the cache where they are there.

    Raises:
        RunError: the cache cannot be written to.
    """
    name = _fingerprint(found, tokenizer)
    directory = CACHE / name
    try:
        if not directory.is_dir():
            CACHE.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=CACHE, prefix="unfinished-", ignore_cleanup_errors=True) as draft:
                _write(Path(draft), found, tokenizer)
                _publish(Path(draft), directory)
    except OSError as error:
        raise RunError(f"cannot write the tokens to {CACHE}: {error}; HF_HOME names another place") from None
    ends = np.load(directory / "ends.npy")
    learned = directory / "learned.bin"
    return Tokens(
        ids=np.memmap(directory / "ids.bin", _id_type(tokenizer), mode="r"),
        learned=np.memmap(learned, bool, mode="r") if learned.is_file() else None,
        ends=ends,
        fingerprint=name,
    )


def _publish(draft: Path, directory: Path) -> None:
    """Give finished files their name, at once. Another run may have been faster, with the same content."""
    whole = draft / "whole"
    try:
        whole.rename(directory)
    except OSError:
        if not directory.is_dir():
            raise


def _write(draft: Path, found: Survey, tokenizer: TextTokenizer) -> None:
    whole = draft / "whole"
    whole.mkdir()
    ends, length, all_learned = array("q"), 0, True
    with (whole / "ids.bin").open("wb") as ids_file, (whole / "learned.bin").open("wb") as learned_file:
        for piece, ids in token_runs(found, tokenizer):
            ids_file.write(ids.tobytes())
            learned_file.write(bytes([piece.learned]) * len(ids))
            all_learned = all_learned and piece.learned
            length += len(ids)
            if piece.ends:
                ends.append(length)
    if all_learned:
        (whole / "learned.bin").unlink()
    np.save(whole / "ends.npy", np.array(ends))


def token_runs(found: Survey, tokenizer: TextTokenizer) -> Iterator[tuple[Piece, np.ndarray]]:
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


def _fingerprint(found: Survey, tokenizer: TextTokenizer) -> str:
    """Names the tokens by all that they depend on, the text itself included."""
    digest = hashlib.sha256(repr((VERSION, found.digest, tokenizer.end_id)).encode())
    digest.update(tokenizer.raw.to_str().encode())
    if tokenizer.prefix or not tokenizer.encodes_in_parts:
        digest.update(repr((tokenizer.prefix, tokenizer.encodes_in_parts)).encode())
    return digest.hexdigest()[:32]
