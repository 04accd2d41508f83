"""Tokens in an Arrow file: slices against plain arrays, and texts of one piece or of many."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from data_helpers import encode_by_hand, ids_of, load, numbered, write
from datasets import arrow_writer

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.errors import RunError
from gpt2tg.reading import plain_text
from gpt2tg.training.data import tokenization
from gpt2tg.training.data.token_builder import build_tokens
from gpt2tg.training.data.tokenization import TokenBatch
from gpt2tg.training.data.tokens import open_tokens


def test_slices_across_record_batches_are_those_of_plain_arrays(tmp_path: Path) -> None:
    chance = np.random.default_rng(5)
    batches = []
    for pieces in (3, 1, 2, 40, 1, 1, 7):
        lengths = chance.integers(0, 5, pieces).tolist()
        ids = chance.integers(0, 60_000, sum(lengths)).astype(np.uint16)
        batches.append(
            TokenBatch(ids, lengths, (chance.random(pieces) < 0.6).tolist(), (chance.random(pieces) < 0.5).tolist())
        )
    directory = tmp_path / "tokens"
    directory.mkdir()
    build_tokens(directory, iter(batches), np.uint16)
    found = open_tokens(directory, "a name")
    ids = np.concatenate([batch.ids for batch in batches])
    learned = np.concatenate([np.repeat(batch.learned, batch.lengths) for batch in batches])
    ends = np.cumsum(np.concatenate([batch.lengths for batch in batches]))[np.concatenate([b.ends for b in batches])]
    assert found.learned is not None
    assert len(found.ids) == len(found.learned) == len(ids)
    assert found.ends.tolist() == ends.tolist()
    places = [None, 0, 1, -1, -3, len(ids), len(ids) + 9, *random.Random(5).sample(range(len(ids)), 25)]
    for span in (slice(first, last, step) for first in places for last in places for step in (None, 2)):
        assert found.ids[span].tolist() == ids[span].tolist()
        assert found.learned[span].tolist() == learned[span].tolist()
    assert [found.learned[place] for place in (0, 5, -1)] == learned[[0, 5, -1]].tolist()
    assert np.asarray(found.ids).tolist() == ids.tolist()


def test_a_text_of_many_long_pieces_keeps_its_order(
    tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer of datasets collects tables of one row in memory, so there must be only one, the last."""
    monkeypatch.setattr(plain_text, "PIECE_CHARACTERS", 10)
    monkeypatch.setattr(tokenization, "BATCH_CHARACTERS", 5)
    collected: list[Any] = []
    write_row = arrow_writer.ArrowWriter.write_row
    monkeypatch.setattr(
        arrow_writer.ArrowWriter, "write_row", lambda self, row: (collected.append(row), write_row(self, row))
    )
    text = "".join(f"{line}\n" for line in numbered(301, "long"))
    path = write(tmp_path, numbered(301, "long"))
    assert ids_of(load(path, tokenizer, examples="file").train) == encode_by_hand([text], tokenizer)
    assert len(collected) <= 1


def test_the_tokens_are_a_dataset_of_other_programs(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    tokens = load(write(tmp_path, numbered(4, "open")), tokenizer).train.tokens
    found = datasets.Dataset.from_file(str(tokens.directory / "tokens-train.arrow"))
    assert found["ids"][:] == [[*tokenizer.encode(text), tokenizer.end_id] for text in numbered(4, "open")]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line(
    tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(arrow_writer.ArrowWriter, "write_table", refuse)
    with pytest.raises(RunError, match=f"cannot write the tokens to .*{os.strerror(code)}.*; set HF_HOME") as failure:
        load(write(tmp_path, numbered(9, f"full {code}")), tokenizer)
    assert "\n" not in str(failure.value)
