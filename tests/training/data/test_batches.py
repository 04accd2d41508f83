"""Collating blocks to batches: padding, labels and masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_model
from data_helpers import (
    load,
    write,
)

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.training.data import batches
from gpt2tg.training.data.batches import collate
from gpt2tg.training.model import cpu_speedups
from gpt2tg.training.model.build import for_training


def test_rows_need_no_attention_mask() -> None:
    batch = collate(3, pad_id=0)([{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9, 0]}])
    assert set(batch) == {"input_ids", "labels"}
    assert batch["input_ids"].tolist() == batch["labels"].tolist() == [[5, 6, 7], [8, 9, 0]]


def test_examples_kept_apart_need_no_mask_in_the_batch() -> None:
    """It would have the square of the block size, and be sent to the GPU with each batch; the model makes it there."""
    rows = [{name: np.array([0, 1, 0]) for name in ("input_ids", "labels", "position_ids")}]
    batch = collate(4, pad_id=1)(rows)
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == dict.fromkeys(rows[0], (1, 4))


def test_padding_is_on_the_right() -> None:
    batch = collate(4, pad_id=1)([{"input_ids": [5, 6, 7, 8]}, {"input_ids": [9, 3]}])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [9, 3, 1, 1]]
    assert set(batch) == {"input_ids", "labels"}


@pytest.mark.parametrize("learns", [False, True])
def test_padding_does_not_change_the_loss(learns: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compares with transformers on each row alone. Attention with dropout takes another path than without."""
    monkeypatch.setattr(cpu_speedups, "dropped", lambda x, share: x)
    theirs, ours = random_model(), for_training(random_model()).train(learns)
    texts = [[5, 6, 7, 8, 9, 10], [9, 3, 0], [4, 11]]
    with torch.no_grad():
        losses = [theirs(torch.tensor([ids]), labels=torch.tensor([ids])).loss * (len(ids) - 1) for ids in texts]
        expected = sum(losses) / sum(len(ids) - 1 for ids in texts)
        batch = collate(6, pad_id=1)([{"input_ids": ids} for ids in texts])
        assert ours(**batch).loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_padding_carries_no_loss() -> None:
    batch = collate(4, pad_id=1)([{"input_ids": [5, 6, 7, 8]}, {"input_ids": [9, 3]}])
    assert batch["labels"].tolist() == [[5, 6, 7, 8], [9, 3, -100, -100]]


def test_a_real_token_that_equals_the_pad_id_is_learned() -> None:
    batch = collate(4, pad_id=0)([{"input_ids": [5, 0, 0]}])
    assert batch["labels"].tolist() == [[5, 0, 0, -100]]


def test_count_tokens_leaves_out_padding() -> None:
    """A prompt at the end of a row and end-of-text tokens are not padding."""
    rows = [
        {"input_ids": np.array(ids), "labels": np.array(labels)}
        for ids, labels in [([5, 0, 6, 7], [-100, -100, 6, 7]), ([5, 0], [5, 0]), ([0, 5, 9], [0, -100, -100])]
    ]
    assert batches.count_tokens(collate(6, pad_id=0)(rows), pad_id=0).item() == 4 + 2 + 3


def test_batches_hold_int64() -> None:
    batch = collate(4, pad_id=0)([{"input_ids": [5, 0, 0]}])
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_a_packed_dataset_can_be_collated(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    packed = load(write(tmp_path, ["x", "x", "x"]), tokenizer, block_size=4).train
    batch = collate(4, tokenizer.end_id)([packed[0], packed[1]])
    [x], end = tokenizer.encode("x"), tokenizer.end_id
    assert batch["labels"].tolist() == [[x, end, x, end], [x, end, -100, -100]]
