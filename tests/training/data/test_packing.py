"""Packing examples into blocks: no id is lost, and examples can be kept apart."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from data_helpers import (
    EXAMPLES,
    cut_by_hand,
    encode_by_hand,
    ids_of,
    load,
    numbered,
    rows,
    texts_of,
    write,
)
from transformers import GPT2LMHeadModel

from gpt2tg.checkpoint.checkpoint import read_checkpoint
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.reading import plain_text
from gpt2tg.training.data import tokenization
from gpt2tg.training.data.batches import collate
from gpt2tg.training.model.build import existing_model, mask_within_examples


@pytest.mark.parametrize("block_size", [4, 7, 64, 10_000])
def test_every_id_survives_packing(tmp_path: Path, tokenizer: TextTokenizer, block_size: int) -> None:
    packed = load(write(tmp_path, EXAMPLES), tokenizer, block_size=block_size).train
    assert ids_of(packed) == encode_by_hand(EXAMPLES, tokenizer)


def test_paragraphs_survive_packing(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    packed = load(write(tmp_path, ["one", "two", "", " ", "three"]), tokenizer, examples="paragraph").train
    assert ids_of(packed) == encode_by_hand(["one\ntwo", "three"], tokenizer)


def test_a_file_survives_packing(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    packed = load(write(tmp_path, ["one", "", "two"]), tokenizer, examples="file").train
    assert ids_of(packed) == encode_by_hand(["one\n\ntwo\n"], tokenizer)


@pytest.mark.parametrize("mode", ["line", "file"])
def test_long_examples_survive_packing(
    tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Examples in many pieces and many batches still get one end-of-text token each."""
    monkeypatch.setattr(plain_text, "PIECE_CHARACTERS", 10)
    monkeypatch.setattr(tokenization, "BATCH_CHARACTERS", 25)
    lines = ["A fox counted   the stars twice. " * 9, "x", "Two bells  argued. " * 7]
    expected = lines if mode == "line" else ["".join(f"{line}\n" for line in lines)]
    packed = load(write(tmp_path, lines), tokenizer, examples=mode, block_size=16).train
    assert ids_of(packed) == encode_by_hand(expected, tokenizer)


def test_all_blocks_are_full_but_the_last(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    total = len(encode_by_hand(EXAMPLES, tokenizer))
    block_size = next(size for size in range(20, 40) if total % size > 1)
    lengths = [len(row) for row in rows(load(write(tmp_path, EXAMPLES), tokenizer, block_size=block_size).train)]
    assert lengths == [block_size] * (total // block_size) + [total % block_size]


def test_no_empty_block_follows_full_ones(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    lines = ["x"] * 12  # two ids each, with the end-of-text token
    lengths = [len(row) for row in rows(load(write(tmp_path, lines), tokenizer, block_size=8).train)]
    assert lengths == [8, 8, 8]


@pytest.mark.parametrize(
    ("block_size", "lengths"), [(7, [7, 7, 7, 7, 7, 6, 2]), (6, [6] * 6 + [5, 2]), (9, [9] * 4 + [7]), (42, [41, 2])]
)
def test_no_block_is_a_single_token(
    tmp_path: Path, tokenizer: TextTokenizer, block_size: int, lengths: list[int]
) -> None:
    """A single token has no context to be predicted from. 43 ids in blocks of 7, 6 and 42 would leave one."""
    lines = ["x"] * 20 + ["xx"]  # two ids each with the end-of-text token, and three
    packed = load(write(tmp_path, lines), tokenizer, block_size=block_size).train
    assert [len(row) for row in rows(packed)] == lengths
    assert ids_of(packed) == encode_by_hand(lines, tokenizer)


def test_fewer_ids_than_a_block_are_kept(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    packed = load(write(tmp_path, ["x"]), tokenizer, block_size=128).train
    assert rows(packed) == [[*tokenizer.encode("x"), tokenizer.end_id]]


def test_packed_batch_has_the_loss_of_its_examples_alone(
    tmp_path: Path, tokenizer: TextTokenizer, reference: GPT2LMHeadModel, model_dir: Path
) -> None:
    """Compares with the mean over all tokens of the examples, each alone in transformers. Some are cut, some padded."""
    rng = random.Random(3)
    lines = [" ".join(rng.choices(["owl", "fox", "stars", "bell", "ink"], k=rng.randint(1, 25))) for _ in range(30)]
    blocks = load(write(tmp_path, lines), tokenizer, block_size=48, no_cross_examples=True).train
    total, count = 0.0, 0
    for line in lines:
        ids = [*tokenizer.encode(line), tokenizer.end_id]
        for part in cut_by_hand(ids, 48):
            with torch.no_grad():
                loss = reference(torch.tensor([part]), labels=torch.tensor([part])).loss.item()
            total, count = total + loss * (len(part) - 1), count + len(part) - 1
    batch = collate(48, tokenizer.end_id)(list(blocks))
    assert max(len(ids_of([row])) for row in blocks) <= 48
    assert any(len(tokenizer.encode(line)) >= 48 for line in lines)
    assert (batch["labels"][:, 1:] != -100).sum() == count
    ours, mask = existing_model(read_checkpoint(model_dir))[0].eval(), mask_within_examples(batch["position_ids"])
    with torch.no_grad():
        assert ours(**batch).loss.item() == pytest.approx(total / count, abs=1e-5)
        assert reference(**batch, attention_mask=mask).loss.item() == pytest.approx(total / count, abs=1e-5)


def test_logits_do_not_depend_on_other_examples_in_the_block(
    tmp_path: Path, tokenizer: TextTokenizer, reference: GPT2LMHeadModel
) -> None:
    def logits_of_the_last(neighbour: str) -> torch.Tensor:
        blocks = load(write(tmp_path, [neighbour, "An owl."]), tokenizer, block_size=40, no_cross_examples=True).train
        [block] = blocks
        with torch.no_grad():
            batch = collate(40, 0)([block])
            mask = mask_within_examples(batch["position_ids"])
            found = reference(batch["input_ids"], position_ids=batch["position_ids"], attention_mask=mask)
        start = len(block["position_ids"]) - 1 - block["position_ids"][::-1].tolist().index(0)
        return found.logits[0, start : len(block["input_ids"])]

    torch.testing.assert_close(logits_of_the_last("The fox counted bells."), logits_of_the_last("A river came early."))


@pytest.mark.parametrize("block_size", [4, 7, 64])
def test_every_id_survives_packing_separately(tmp_path: Path, tokenizer: TextTokenizer, block_size: int) -> None:
    lines = [*EXAMPLES, *numbered(50)]
    packed = load(write(tmp_path, lines), tokenizer, block_size=block_size, no_cross_examples=True).train
    assert sorted(ids_of(packed)) == sorted(encode_by_hand(lines, tokenizer))
    if block_size == 64:  # no short example is cut, and little room is left over
        assert sorted(texts_of(packed, tokenizer))[:50] == sorted(lines)[:50]
        assert len(packed) <= math.ceil(len(ids_of(packed)) / 64) + 1
