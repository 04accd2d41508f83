"""Encode the examples of a corpus to token ids, a bounded batch of text at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.reading.plain_text import Piece
from gpt2tg.training.data.corpus import Corpus

# Encoded in one call: enough for the tokenizer to keep all cores busy.
BATCH_CHARACTERS = 1 << 20


def encode_corpus(corpus: Corpus, tokenizer: TextTokenizer) -> Iterator[tuple[Piece, np.ndarray]]:
    """Yield each piece of text with its token ids.

    The tokenizer's prefix is added at the beginning of an example, and the end-of-text token at its end.
    """
    dtype, begins = id_type(tokenizer), True
    with tqdm(total=corpus.text_bytes, desc="tokenizing", unit="B", unit_scale=True, leave=False, disable=None) as bar:
        for batch in _batches(corpus.pieces()):
            for piece, ids in zip(batch, _encode(batch, begins, tokenizer), strict=True):
                prefix = tokenizer.prefix if begins else ()
                yield piece, np.array([*prefix, *ids, tokenizer.end_id] if piece.ends else [*prefix, *ids], dtype)
                begins = piece.ends
            bar.update(sum(len(piece.text.encode()) for piece in batch))


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


def _batches(stream: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Yield lists of pieces, each of about `BATCH_CHARACTERS` in all."""
    batch: list[Piece] = []
    size = 0
    for piece in stream:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def id_type(tokenizer: TextTokenizer) -> type[np.unsignedinteger]:
    """Return the smallest type that holds every id: two bytes suffice for GPT-2's own tokenizer."""
    largest = max(tokenizer.end_id, *tokenizer.raw.get_vocab().values())
    return np.uint16 if largest < 1 << 16 else np.uint32
