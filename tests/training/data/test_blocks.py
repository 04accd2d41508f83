"""Blocks: their fingerprints, and what data loader workers get."""

from __future__ import annotations

import hashlib
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import (
    load,
    numbered,
    write,
)

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.training.data.batches import collate
from gpt2tg.training.data.blocks import BlockRange, Blocks
from gpt2tg.training.data.tokens import MappedIds, Tokens


def test_fingerprints_change_with_the_blocks(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    """The file name does not matter; everything that changes a block does."""

    def fingerprints(name: str = "a.txt", words: str = "fable", **settings: Any) -> tuple[str | None, ...]:
        path = write(tmp_path, numbered(40, words), name)
        found = load(path, tokenizer, **{"validation_split": 0.2, **settings}).fingerprints
        return (found["training"], found["validation"])

    assert fingerprints() == fingerprints("b.txt")
    others = [
        fingerprints(words="other"), fingerprints(seed=3), fingerprints(block_size=9), fingerprints(examples="file"),
        fingerprints(no_cross_examples=True), fingerprints(validation_split=0),
    ]  # fmt: skip
    assert len({fingerprints(), *others}) == 7


def test_fingerprints_of_many_blocks_take_little_memory() -> None:
    """The fingerprint of a range hashes the list of its block numbers, as in earlier versions."""
    count = 150_000
    nothing = Tokens(MappedIds([], np.dtype("u2")), None, np.ones(1, np.int64), "name", Path())
    edges = np.arange(count + 1)
    many = Blocks(nothing, edges[:-1] * 8, edges[1:] * 8, edges, restart=False)
    tracemalloc.start()
    border = count - 7000
    found = [BlockRange(many, numbers).fingerprint for numbers in (range(border), range(border, count))]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000
    expected = repr((many.fingerprint, list(range(border, count))))
    assert found[1] == hashlib.sha256(expected.encode()).hexdigest()[:32]
    assert found[0] != found[1]


def is_mapped(tokens: Tokens) -> bool:
    """Whether the ids lie in a mapping of the file, without a copy."""
    place = tokens.ids[1:2].ctypes.data
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, _, rest = line.partition("-")
        last, *_, path = rest.split()
        if int(first, 16) <= place < int(last, 16):
            return path == str(tokens.directory / "tokens-train.arrow")
    return False


@pytest.mark.parametrize("alone", [False, True])
def test_workers_map_the_tokens_instead_of_copying_them(tmp_path: Path, tokenizer: TextTokenizer, alone: bool) -> None:
    """Spawned workers get pickled data and collator: the tokens themselves must not be pickled."""
    loaded = load(write(tmp_path, [f"worker {n} " + "x" * 500 for n in range(300)]), tokenizer, no_cross_examples=alone)
    sent = pickle.dumps((loaded.train, collate(128, tokenizer.end_id)))
    assert len(sent) < loaded.train.tokens.ids.nbytes / 4
    blocks, batch_of = pickle.loads(sent)
    assert is_mapped(blocks.tokens)
    here, there = (
        made([blocks[i] for i in (0, 3)])
        for made, blocks in ((collate(128, tokenizer.end_id), loaded.train), (batch_of, blocks))
    )
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)


def test_tokens_stay_on_disk(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    loaded = load(write(tmp_path, numbered(100, "mapped")), tokenizer, block_size=8)
    assert is_mapped(loaded.train.tokens)
