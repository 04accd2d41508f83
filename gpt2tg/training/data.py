"""From examples to blocks of token ids, held in memory-mapped Arrow by the `datasets` library."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, Sequence, Value
from torch import Tensor
from tqdm import tqdm

from gpt2tg.engine.tokenizer import TextTokenizer
from gpt2tg.errors import UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.training.text import Piece, Survey, pieces, survey

# Labels with this value carry no loss (torch's cross entropy and transformers agree on it).
NO_LOSS = -100

# Part of the name of cached blocks: raise it whenever reading or packing changes, or old blocks would be used.
PACKING_VERSION = 1

# Characters encoded in one call: the tokenizer spreads the examples over the cores.
ENCODE_CHARACTERS = 1 << 20

BLOCK_FEATURES = Features({"input_ids": Sequence(Value("int32"))})


@dataclass(frozen=True)
class TextSource:
    """The examples of a file, or the part of them on one side of the split."""

    found: Survey
    examples: str
    held_out: frozenset[int] = frozenset()
    keep_held_out: bool = False

    def __iter__(self) -> Iterator[Piece]:
        number = 0
        for piece in pieces(self.found.path, self.examples):
            if (number in self.held_out) == self.keep_held_out:
                yield piece
            number += piece.ends

    @property
    def count(self) -> int:
        """Number of examples."""
        return len(self.held_out) if self.keep_held_out else self.found.examples - len(self.held_out)


@dataclass(frozen=True)
class TrainingData:
    """Blocks to learn from and blocks to measure on, each of at most `block_size` ids."""

    train: Dataset
    validation: Dataset | None
    train_examples: int
    validation_examples: int


def plan_sources(options: TrainingOptions) -> tuple[TextSource, TextSource | None]:
    """Look through the files and decide which examples are held out, before anything is loaded or written.

    Returns:
        What to learn from, and what to measure on: the validation file, or `validation_split` of the examples
        (at least one), or None. A single example cannot be split here; `load_data` splits its blocks.

    Raises:
        UserError: a file cannot be used.
    """
    if not options.train_file:
        raise UserError("is required: give the text file to learn from", "train_file")
    found = survey(Path(options.train_file), options.examples, "train_file")
    whole = TextSource(found, options.examples)
    if options.validation_file:
        measured = survey(Path(options.validation_file), options.examples, "validation_file")
        return whole, TextSource(measured, options.examples)
    if not options.validation_split or found.examples < 2:
        return whole, None
    held_out = _choose_held_out(found.examples, options.validation_split, options.seed)
    return (
        TextSource(found, options.examples, held_out),
        TextSource(found, options.examples, held_out, keep_held_out=True),
    )


def _choose_held_out(examples: int, share: float, seed: int) -> frozenset[int]:
    count = min(max(1, round(examples * share)), examples - 1)
    return frozenset(random.Random(seed).sample(range(examples), count))


def load_data(
    sources: tuple[TextSource, TextSource | None], tokenizer: TextTokenizer, options: TrainingOptions
) -> TrainingData:
    """Tokenise and pack both sides of the split. Blocks are cached by the content they were made from."""
    train_source, validation_source = sources
    train = pack(train_source, tokenizer, options.block_size)
    if validation_source is not None:
        validation = pack(validation_source, tokenizer, options.block_size)
        return TrainingData(train, validation, train_source.count, validation_source.count)
    if options.validation_split and len(train) > 1:  # one stream: its end is held out
        held_out = min(max(1, round(len(train) * options.validation_split)), len(train) - 1)
        border = len(train) - held_out
        return TrainingData(train.select(range(border)), train.select(range(border, len(train))), 1, 1)
    return TrainingData(train, None, train_source.count, 0)


def pack(source: TextSource, tokenizer: TextTokenizer, block_size: int) -> Dataset:
    """Blocks of `block_size` ids; every example ends with the end-of-text token, nothing is dropped.

    Returns:
        A dataset with one column, `input_ids`. All rows are full but the last, which holds the rest; where the
        rest would be a single token, the last two share what is left.
    """
    return Dataset.from_generator(
        _blocks,
        features=BLOCK_FEATURES,
        gen_kwargs={"source": source, "tokenizer": tokenizer, "block_size": block_size},
        fingerprint=_fingerprint(source, tokenizer, block_size),
    )


def _blocks(source: TextSource, tokenizer: TextTokenizer, block_size: int) -> Iterator[dict[str, list[int]]]:
    waiting: list[int] = []
    for ids in token_runs(source, tokenizer):
        waiting += ids
        done = 0
        while len(waiting) - done > block_size + 1:
            yield {"input_ids": waiting[done : done + block_size]}
            done += block_size
        del waiting[:done]
    # A block of one token has nothing to be predicted from: rather two short ones than that.
    border = block_size - 1 if len(waiting) == block_size + 1 else block_size
    for block in (waiting[:border], waiting[border:]):
        if block:
            yield {"input_ids": block}


def token_runs(source: TextSource, tokenizer: TextTokenizer) -> Iterator[list[int]]:
    """The ids of each piece of text, with the end-of-text token where an example ends."""
    share = source.count / source.found.examples
    with tqdm(
        total=int(source.found.bytes * share), desc="tokenizing", unit="B", unit_scale=True, leave=False, disable=None
    ) as bar:
        for batch in _batches(source):
            texts = [piece.text for piece in batch]
            encodings = tokenizer.raw.encode_batch_fast(texts, add_special_tokens=False)
            for piece, encoding in zip(batch, encodings, strict=True):
                yield [*encoding.ids, tokenizer.end_id] if piece.ends else encoding.ids
            bar.update(sum(len(text.encode()) for text in texts))


def _batches(stream: Iterable[Piece]) -> Iterator[list[Piece]]:
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


def _fingerprint(source: TextSource, tokenizer: TextTokenizer, block_size: int) -> str:
    """Names the blocks by all that they depend on, the text itself included."""
    digest = hashlib.sha256()
    with source.found.path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    rest = (
        PACKING_VERSION,
        source.examples,
        sorted(source.held_out),
        source.keep_held_out,
        tokenizer.end_id,
        block_size,
    )
    digest.update(repr(rest).encode())
    digest.update(tokenizer.raw.to_str().encode())
    return digest.hexdigest()[:32]


def collate(block_size: int, pad_id: int) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
    """Puts blocks together to a batch for the model.

    Full blocks need no mask, and attention is faster without one. Short ones are padded on the right; what is
    padding is told by the attention mask alone: the pad id may well be a token that must be learned.
    """

    def batch_of(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])  # (B,)
        ids = torch.full((len(rows), block_size), pad_id)  # (B, T)
        for i, row in enumerate(rows):
            ids[i, : lengths[i]] = torch.as_tensor(row["input_ids"], dtype=torch.long)
        real = torch.arange(block_size) < lengths[:, None]  # (B, T)
        batch = {"input_ids": ids, "labels": ids.masked_fill(~real, NO_LOSS)}
        if not real.all():
            batch["attention_mask"] = real.long()
        return batch

    return batch_of
