"""Encode the examples of a corpus to token ids, a bounded batch of text at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.reading.plain_text import Piece

# Encoded in one call: enough for the tokenizer to keep all cores busy.
BATCH_CHARACTERS = 1 << 20


class TokenBatch(NamedTuple):
    """The token ids of a few pieces of text, one after the other."""

    ids: np.ndarray  # (N,)
    lengths: list[int]  # of each piece, in ids
    ends: list[bool]  # whether an example ends with the piece
    learned: list[bool]  # whether the ids of the piece carry loss


def encode_pieces(pieces: Iterable[Piece], text_bytes: int | None, tokenizer: TextTokenizer) -> Iterator[TokenBatch]:
    """Yield the token ids of pieces of text, in batches.

    The tokenizer's prefix is added at the beginning of an example, and the end-of-text token at its end.

    Args:
        text_bytes: of all pieces, for the progress bar; None if nobody knows.
    """
    dtype, begins = id_type(tokenizer), True
    with tqdm(total=text_bytes, desc="tokenizing", unit="B", unit_scale=True, leave=False, disable=None) as bar:
        for batch in _batches(pieces):
            encoded = _encode(batch, begins, tokenizer)
            for piece, ids in zip(batch, encoded, strict=True):
                if begins and tokenizer.prefix:
                    ids[:0] = tokenizer.prefix
                if piece.ends:
                    ids.append(tokenizer.end_id)
                begins = piece.ends
            yield _joined(batch, encoded, dtype)
            bar.update(sum(len(piece.text.encode()) for piece in batch))


def _joined(batch: Sequence[Piece], encoded: list[list[int]], dtype: type[np.unsignedinteger]) -> TokenBatch:
    lengths = [len(ids) for ids in encoded]
    ids = np.fromiter(chain.from_iterable(encoded), dtype, sum(lengths))
    return TokenBatch(ids, lengths, [piece.ends for piece in batch], [piece.learned for piece in batch])


def _encode(batch: Sequence[Piece], begins: bool, tokenizer: TextTokenizer) -> list[list[int]]:
    """Return the ids of each piece.

    Args:
        begins: whether the first piece begins an example.
    """
    follows = [not begins, *(not piece.ends for piece in batch[:-1])]
    continues = [later and not tokenizer.encodes_in_parts for later in follows]
    texts = [piece.text for piece, later in zip(batch, continues, strict=True) if not later]
    encoded = iter(tokenizer.raw.encode_batch_fast(texts, add_special_tokens=False))
    return [
        tokenizer.encode(piece.text, continues=True) if later else next(encoded).ids
        for piece, later in zip(batch, continues, strict=True)
    ]


def _batches(stream: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Yield lists of pieces, each of about `BATCH_CHARACTERS` in all.

    All but the last have two pieces or more: the writer of `datasets` collects tables of a single row in memory.
    """
    batch: list[Piece] = []
    size = 0
    for piece in stream:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH_CHARACTERS and len(batch) > 1:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def id_type(tokenizer: TextTokenizer) -> type[np.unsignedinteger]:
    """Return the smallest type that holds every id: two bytes suffice for GPT-2's own tokenizer."""
    largest = max(tokenizer.end_id, *tokenizer.raw.get_vocab().values())
    return np.uint16 if largest < 1 << 16 else np.uint32
