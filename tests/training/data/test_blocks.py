"""Packing, splitting and caching of training data."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import random
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_model
from filelock import FileLock
from torch.utils.data import Dataset, Subset
from transformers import GPT2LMHeadModel

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.errors import UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.reading import plain_text
from gpt2tg.training.data import blocks
from gpt2tg.training.data import token_cache as tokens
from gpt2tg.training.data.blocks import Blocks, TrainingData, collate, load_data
from gpt2tg.training.data.sources import Corpus, plan_sources
from gpt2tg.training.data.token_cache import Tokens
from gpt2tg.training.model import cpu_speedups as cpu
from gpt2tg.training.model.build import existing_model, for_training, train_tokenizer

EXAMPLES = ["The owl sold silence.", "  indented, with an end  ", "naïve 猫 🦊 e\u0301", "x", "A fox counted. " * 30]


def write(directory: Path, lines: list[str], name: str = "train.txt") -> Path:
    path = directory / name
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return path


def numbered(count: int, subject: str = "fable") -> list[str]:
    return [f"{subject} {number}" for number in range(count)]


def load(path: Path, tokenizer: TextTokenizer, **settings: Any) -> TrainingData:
    options = TrainingOptions(train_file=str(path), **{"validation_split": 0, **settings})
    return load_data(plan_sources(options), tokenizer, options)


def rows(dataset: Dataset | None) -> list[list[int]]:
    assert dataset is not None
    return [row["input_ids"].tolist() for row in dataset]


def ids_of(dataset: Dataset | None) -> list[int]:
    return [token for row in rows(dataset) for token in row]


def texts_of(dataset: Dataset | None, tokenizer: TextTokenizer) -> list[str]:
    """The examples that were packed."""
    return tokenizer.raw.decode(ids_of(dataset), skip_special_tokens=False).split("<|endoftext|>")[:-1]


def encode_by_hand(examples: list[str], tokenizer: TextTokenizer) -> list[int]:
    ids: list[int] = []
    for example in examples:
        ids += tokenizer.encode(example)
        ids.append(tokenizer.end_id)
    return ids


def cut_by_hand(ids: list[int], block_size: int) -> list[list[int]]:
    blocks = [ids[start : start + block_size] for start in range(0, len(ids), block_size)]
    if len(blocks[-1]) == 1:
        blocks[-1].insert(0, blocks[-2].pop())
    return blocks


# ---- packing ----


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
    """Read in many pieces, encoded in many batches: the end-of-text token still comes once per example."""
    monkeypatch.setattr(plain_text, "PIECE_CHARACTERS", 10)
    monkeypatch.setattr(tokens, "ENCODE_CHARACTERS", 25)
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
    """A single token has nothing to be predicted from: 43 ids in blocks of 7, 6 and 42 would leave one."""
    lines = ["x"] * 20 + ["xx"]  # two ids each with the end-of-text token, and three
    packed = load(write(tmp_path, lines), tokenizer, block_size=block_size).train
    assert [len(row) for row in rows(packed)] == lengths
    assert ids_of(packed) == encode_by_hand(lines, tokenizer)


def test_fewer_ids_than_a_block_are_kept(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    packed = load(write(tmp_path, ["x"]), tokenizer, block_size=128).train
    assert rows(packed) == [[*tokenizer.encode("x"), tokenizer.end_id]]


# ---- batches ----


def test_rows_need_no_attention_mask() -> None:
    batch = collate(3, pad_id=0)([{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9, 0]}])
    assert set(batch) == {"input_ids", "labels"}
    assert batch["input_ids"].tolist() == batch["labels"].tolist() == [[5, 6, 7], [8, 9, 0]]


def test_padding_stands_on_the_right() -> None:
    batch = collate(4, pad_id=1)([{"input_ids": [5, 6, 7, 8]}, {"input_ids": [9, 3]}])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [9, 3, 1, 1]]
    assert set(batch) == {"input_ids", "labels"}


@pytest.mark.parametrize("learns", [False, True])
def test_a_padded_batch_has_the_loss_of_its_rows_without_padding(learns: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By transformers, each row alone; attention with dropout and without is computed in two ways."""
    monkeypatch.setattr(cpu, "dropped", lambda x, share: x)
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


def test_tokens_of_a_batch_are_those_of_its_rows() -> None:
    """Prompts at the end of a row and end-of-text tokens in it are none of its padding."""
    rows = [
        {"input_ids": np.array(ids), "labels": np.array(labels)}
        for ids, labels in [([5, 0, 6, 7], [-100, -100, 6, 7]), ([5, 0], [5, 0]), ([0, 5, 9], [0, -100, -100])]
    ]
    assert blocks.count_tokens(collate(6, pad_id=0)(rows), pad_id=0).item() == 4 + 2 + 3


def test_batches_are_of_whole_numbers() -> None:
    batch = collate(4, pad_id=0)([{"input_ids": [5, 0, 0]}])
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_a_packed_dataset_can_be_collated(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    packed = load(write(tmp_path, ["x", "x", "x"]), tokenizer, block_size=4).train
    batch = collate(4, tokenizer.end_id)([packed[0], packed[1]])
    [x], end = tokenizer.encode("x"), tokenizer.end_id
    assert batch["labels"].tolist() == [[x, end, x, end], [x, end, -100, -100]]


# ---- examples that do not see each other ----


def test_the_loss_of_a_packed_batch_is_that_of_its_examples_one_by_one(
    tmp_path: Path, tokenizer: TextTokenizer, reference: GPT2LMHeadModel, model_dir: Path
) -> None:
    """The mean over all tokens of the examples, each computed alone by transformers; some are cut, some padded."""
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
    with torch.no_grad():
        for model in (reference, existing_model(model_dir)[0].eval()):
            assert model(**batch).loss.item() == pytest.approx(total / count, abs=1e-5)


def test_what_an_example_gives_depends_on_no_neighbour(
    tmp_path: Path, tokenizer: TextTokenizer, reference: GPT2LMHeadModel
) -> None:
    def logits_of_the_last(neighbour: str) -> torch.Tensor:
        blocks = load(write(tmp_path, [neighbour, "An owl."]), tokenizer, block_size=40, no_cross_examples=True).train
        [block] = blocks
        with torch.no_grad():
            found = reference(**{key: value for key, value in collate(40, 0)([block]).items() if key != "labels"})
        start = len(block["position_ids"]) - 1 - block["position_ids"][::-1].tolist().index(0)
        return found.logits[0, start : len(block["input_ids"])]

    torch.testing.assert_close(logits_of_the_last("The fox counted bells."), logits_of_the_last("A river came early."))


@pytest.mark.parametrize("block_size", [4, 7, 64])
def test_examples_that_do_not_cross_survive_packing(tmp_path: Path, tokenizer: TextTokenizer, block_size: int) -> None:
    lines = [*EXAMPLES, *numbered(50)]
    packed = load(write(tmp_path, lines), tokenizer, block_size=block_size, no_cross_examples=True).train
    assert sorted(ids_of(packed)) == sorted(encode_by_hand(lines, tokenizer))
    if block_size == 64:  # no short example is cut, and little room is left over
        assert sorted(texts_of(packed, tokenizer))[:50] == sorted(lines)[:50]
        assert len(packed) <= math.ceil(len(ids_of(packed)) / 64) + 1


# ---- the split ----


@pytest.mark.parametrize(
    ("examples", "share", "held_out"), [(100, 0.05, 5), (40, 0.5, 20), (10, 0.05, 1), (2, 0.05, 1), (3, 0.99, 2)]
)
def test_a_share_of_the_examples_is_held_out(
    tmp_path: Path, tokenizer: TextTokenizer, examples: int, share: float, held_out: int
) -> None:
    """At least one, but never all."""
    loaded = load(write(tmp_path, numbered(examples)), tokenizer, validation_split=share)
    assert len(texts_of(loaded.validation, tokenizer)) == held_out
    assert len(texts_of(loaded.train, tokenizer)) == examples - held_out


def test_five_percent_are_held_out_by_default(tmp_path: Path) -> None:
    _, measured = plan_sources(TrainingOptions(train_file=str(write(tmp_path, numbered(200)))))
    assert measured is not None
    assert [measured.count, len(list(measured))] == [10, 10]


@pytest.mark.parametrize("mode", ["line", "paragraph"])
def test_the_two_sides_are_disjoint_and_complete(tmp_path: Path, tokenizer: TextTokenizer, mode: str) -> None:
    lines = numbered(60)
    path = write(tmp_path, lines if mode == "line" else [f"{line}\n" for line in lines])
    loaded = load(path, tokenizer, validation_split=0.3, examples=mode)
    assert sorted(texts_of(loaded.train, tokenizer) + texts_of(loaded.validation, tokenizer)) == sorted(lines)


def test_long_examples_are_held_out_as_a_whole(
    tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_text, "PIECE_CHARACTERS", 4)
    lines = [f"{number} is a long example of many pieces" for number in range(10)]
    loaded = load(write(tmp_path, lines), tokenizer, validation_split=0.3)
    assert sorted(texts_of(loaded.train, tokenizer) + texts_of(loaded.validation, tokenizer)) == sorted(lines)


def test_training_examples_keep_their_order(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    lines = numbered(60)
    learned = texts_of(load(write(tmp_path, lines), tokenizer, validation_split=0.3).train, tokenizer)
    assert learned == [line for line in lines if line in learned]


def test_examples_are_counted_on_both_sides(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    loaded = load(write(tmp_path, numbered(40)), tokenizer, validation_split=0.1)
    assert (loaded.train_examples, loaded.validation_examples) == (36, 4)


def held_out_texts(path: Path, seed: int) -> list[str]:
    _, measured = plan_sources(TrainingOptions(train_file=str(path), seed=seed))
    assert measured is not None
    return [piece.text for piece in measured]


def test_the_same_seed_splits_the_same_way(tmp_path: Path) -> None:
    path = write(tmp_path, numbered(200))
    assert held_out_texts(path, seed=7) == held_out_texts(path, seed=7)


def test_another_seed_splits_another_way(tmp_path: Path) -> None:
    path = write(tmp_path, numbered(200))
    assert held_out_texts(path, seed=7) != held_out_texts(path, seed=8)


def test_no_split_holds_out_nothing(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    lines = numbered(30)
    loaded = load(write(tmp_path, lines), tokenizer, validation_split=0)
    assert (loaded.validation, loaded.validation_examples) == (None, 0)
    assert texts_of(loaded.train, tokenizer) == lines


@pytest.mark.parametrize("share", [0, 0.05])
def test_a_validation_file_is_used_whole(tmp_path: Path, tokenizer: TextTokenizer, share: float) -> None:
    lines, other = numbered(30), numbered(20, "other")
    measured = write(tmp_path, other, "validation.txt")
    loaded = load(write(tmp_path, lines), tokenizer, validation_split=share, validation_file=str(measured))
    assert texts_of(loaded.train, tokenizer) == lines
    assert texts_of(loaded.validation, tokenizer) == other


@pytest.mark.parametrize(("share", "held_out"), [(0.05, 2), (0.25, 10), (0.001, 1), (0.999, 39)])
def test_the_last_blocks_of_a_single_stream_are_held_out(
    tmp_path: Path, tokenizer: TextTokenizer, share: float, held_out: int
) -> None:
    blocks = cut_by_hand(encode_by_hand(["x\n" * 159], tokenizer), 8)  # 2 * 159 ids and the end: 40 blocks
    loaded = load(write(tmp_path, ["x"] * 159), tokenizer, examples="file", validation_split=share, block_size=8)
    assert len(blocks) == 40
    assert rows(loaded.train) == blocks[:-held_out]
    assert rows(loaded.validation) == blocks[-held_out:]


def test_the_last_blocks_of_a_single_line_are_held_out(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    blocks = cut_by_hand(encode_by_hand([EXAMPLES[-1]], tokenizer), 8)
    loaded = load(write(tmp_path, [EXAMPLES[-1]]), tokenizer, validation_split=0.05, block_size=8)
    assert rows(loaded.train) + rows(loaded.validation) == blocks


def test_a_single_block_is_not_split(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    loaded = load(write(tmp_path, ["one", "two"]), tokenizer, examples="file", validation_split=0.5)
    assert loaded.validation is None
    assert texts_of(loaded.train, tokenizer) == ["one\ntwo\n"]


def test_no_split_keeps_a_single_stream_whole(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    loaded = load(write(tmp_path, ["x"] * 50), tokenizer, examples="file", validation_split=0, block_size=8)
    assert loaded.validation is None
    assert ids_of(loaded.train) == encode_by_hand(["x\n" * 50], tokenizer)


def stories(directory: Path, lengths: list[int]) -> tuple[Path, list[str]]:
    """Files of so many words each, no two alike."""
    rng = random.Random(1)
    texts = [" ".join(str(rng.randrange(1000)) for _ in range(length)) + "\n" for length in lengths]
    for number, content in enumerate(texts):
        (directory / f"{number:02}.txt").write_text(content)
    return directory, texts


@pytest.mark.parametrize(
    ("lengths", "share"),
    [([3000, 1], 0.05), ([3000, 2000], 0.05), ([900] * 19, 0.05), ([3000, 150, 150, 40], 0.05), ([900] * 3, 0.5)],
    ids=["book and note", "two books", "19 stories", "book and stories", "half"],
)
def test_few_files_hold_out_their_share_of_the_tokens(
    tmp_path: Path, tokenizer: TextTokenizer, lengths: list[int], share: float
) -> None:
    """Never a whole book, whatever the seed: what is held out stands at the end of files, and the rest is learned."""
    folder, texts = stories(tmp_path, lengths)
    total = len(encode_by_hand(texts, tokenizer))
    for seed in (42, 1, 2, 3):
        found = load(folder, tokenizer, examples="file", validation_split=share, seed=seed, block_size=32)
        held_out = len(ids_of(found.validation))
        assert held_out == pytest.approx(share * total, rel=0.1)
        assert sorted(ids_of(found.train) + ids_of(found.validation)) == sorted(encode_by_hand(texts, tokenizer))
        ends = tokenizer.raw.decode(ids_of(found.validation), skip_special_tokens=False).split("<|endoftext|>")[:-1]
        assert all(any(content.endswith(end) and content != end for content in texts) for end in ends)
        assert (found.train_examples, found.validation_examples) == (len(lengths), len(ends))


def test_a_very_long_line_is_not_held_out_whole(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    lines = [*numbered(60), "x " * 3000]
    total = len(encode_by_hand(lines, tokenizer))
    for seed in range(8):
        found = load(write(tmp_path, lines), tokenizer, validation_split=0.1, seed=seed)
        assert 0.05 * total <= len(ids_of(found.validation)) <= 0.2 * total


def test_of_a_long_completion_both_sides_learn_a_part(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    rows = [{"prompt": "count " * 200, "completion": f" {n} owl" * 100} for n in range(2)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load(tmp_path / "t.jsonl", tokenizer, validation_split=0.2, block_size=16)
    total = sum(len(encode_by_hand([row["completion"]], tokenizer)) for row in rows)
    held_out = tokenizer.raw.decode(ids_of(found.validation))
    assert "count" not in held_out
    assert len(ids_of(found.validation)) == pytest.approx(0.2 * total, rel=0.1)


def test_examples_of_like_length_are_held_out_by_number(tmp_path: Path) -> None:
    """As in earlier versions, whose runs can be resumed."""
    chosen = random.Random(7).sample(range(200), 10)
    assert held_out_texts(write(tmp_path, numbered(200)), seed=7) == [f"fable {n}" for n in sorted(chosen)]


@pytest.mark.parametrize("copies", [2, 40])
def test_copies_are_on_one_side_of_the_split(tmp_path: Path, tokenizer: TextTokenizer, copies: int) -> None:
    lines = [line for n, line in enumerate(numbered(60)) for _ in range(copies if n % 7 == 0 else 1)]
    random.Random(0).shuffle(lines)
    path = write(tmp_path, lines)
    for seed in range(10):
        found = load(path, tokenizer, validation_split=0.2, seed=seed)
        learned, held_out = texts_of(found.train, tokenizer), texts_of(found.validation, tokenizer)
        assert sorted(learned + held_out) == sorted(lines)
        assert not set(learned) & set(held_out)
        assert 0.1 * len(lines) <= len(held_out) <= 0.4 * len(lines)


def test_copies_of_a_book_hold_out_the_same_end(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    folder, (book, _) = stories(tmp_path, [1500, 1400])
    (folder / "copy.txt").write_text(book)
    for seed in (42, 1, 2):
        found = load(folder, tokenizer, examples="file", validation_split=0.05, seed=seed)
        ends = tokenizer.raw.decode(ids_of(found.validation), skip_special_tokens=False).split("<|endoftext|>")[:-1]
        assert len([end for end in ends if book.endswith(end)]) in (0, 2)
        assert len({end for end in ends if book.endswith(end)}) <= 1
        assert found.train_examples == 3


def test_nothing_is_held_out_of_one_text_in_many_copies(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    found = load(write(tmp_path, ["the same"] * 50), tokenizer, validation_split=0.05, block_size=8)
    assert (found.validation, found.train_examples) == (None, 50)


def test_a_training_file_is_required() -> None:
    with pytest.raises(UserError) as caught:
        plan_sources(TrainingOptions())
    assert caught.value.option == "train_file"


@pytest.mark.parametrize("option", ["train_file", "validation_file"])
def test_a_refused_file_is_named_by_its_option(tmp_path: Path, text_file: Path, option: str) -> None:
    missing = tmp_path / "nowhere.txt"
    with pytest.raises(UserError) as caught:
        plan_sources(TrainingOptions(**{"train_file": str(text_file), option: str(missing)}))
    assert caught.value.option == option
    assert str(missing) in caught.value.message


# ---- the cache ----


@pytest.fixture
def tokenized(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were tokenized, one entry per time."""
    seen: list[Path] = []
    original = tokens.token_runs

    def counted(found: Corpus, tokenizer: TextTokenizer) -> Iterator[Any]:
        seen.extend(found.files)
        return original(found, tokenizer)

    monkeypatch.setattr(tokens, "token_runs", counted)
    return seen


def test_the_same_text_is_tokenized_once_however_it_is_split_and_cut(
    tmp_path: Path, tokenizer: TextTokenizer, tokenized: list[Path]
) -> None:
    path = write(tmp_path, numbered(20, "once,"))
    first = load(path, tokenizer)
    assert tokenized == [path]
    for settings in ({}, {"validation_split": 0.25}, {"seed": 3}, {"block_size": 9}, {"no_cross_examples": True}):
        load(path, tokenizer, **settings)
    assert tokenized == [path]
    assert rows(load(path, tokenizer).train) == rows(first.train)


def test_the_same_text_under_another_name_is_tokenized_once(
    tmp_path: Path, tokenizer: TextTokenizer, tokenized: list[Path]
) -> None:
    lines = numbered(20, "moved")
    load(write(tmp_path, lines), tokenizer)
    moved = load(write(tmp_path, lines, "other.txt"), tokenizer)
    assert tokenized == [tmp_path / "train.txt"]
    assert texts_of(moved.train, tokenizer) == lines


def test_changed_text_of_the_same_name_size_and_time_is_tokenized_anew(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    path = write(tmp_path, numbered(20, "before"))
    load(path, tokenizer)
    before = path.stat()
    write(tmp_path, numbered(20, "behind"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert texts_of(load(path, tokenizer).train, tokenizer) == numbered(20, "behind")


def test_another_block_size_is_packed_anew(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    path = write(tmp_path, numbered(20))
    load(path, tokenizer, block_size=8)
    expected = cut_by_hand(encode_by_hand(numbered(20), tokenizer), 16)
    assert rows(load(path, tokenizer, block_size=16).train) == expected


def test_another_way_of_reading_is_packed_anew(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    path = write(tmp_path, ["one", "two"])
    load(path, tokenizer, examples="line")
    assert texts_of(load(path, tokenizer, examples="paragraph").train, tokenizer) == ["one\ntwo"]


def test_another_seed_is_packed_anew(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    path = write(tmp_path, numbered(200))
    load(path, tokenizer, validation_split=0.05, seed=7)
    loaded = load(path, tokenizer, validation_split=0.05, seed=8)
    assert texts_of(loaded.validation, tokenizer) == held_out_texts(path, seed=8)


def test_another_tokenizer_is_packed_anew(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    path = write(tmp_path, numbered(20))
    load(path, tokenizer)
    source, _ = plan_sources(TrainingOptions(train_file=str(path), validation_split=0))
    other = train_tokenizer(source, 270)
    expected = encode_by_hand(numbered(20), other)
    assert expected != encode_by_hand(numbered(20), tokenizer)
    assert ids_of(load(path, other).train) == expected


def test_another_end_of_text_is_packed_anew(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    path = write(tmp_path, numbered(20))
    load(path, tokenizer)
    other = TextTokenizer(tokenizer.raw, end_id=5)
    assert ids_of(load(path, other).train) == encode_by_hand(numbered(20), other)


def test_fingerprints_name_what_the_blocks_hold(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    """Whatever the file is called; with anything that changes a block, they change."""

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
    """A single stream is named by the numbers of its blocks, as in earlier versions."""
    count = 150_000
    nothing = Tokens(np.zeros(1, np.uint16), None, np.ones(1, np.int64), "name")
    edges = np.arange(count + 1)
    many = Blocks(nothing, edges[:-1] * 8, edges[1:] * 8, edges, restart=False)
    tracemalloc.start()
    border = count - 7000
    found = [blocks._fingerprint(Subset(many, numbers)) for numbers in (range(border), range(border, count))]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000
    expected = repr((many.fingerprint, list(range(border, count))))
    assert found[1] == hashlib.sha256(expected.encode()).hexdigest()[:32]
    assert found[0] != found[1]


def test_an_interrupted_run_leaves_no_half_of_the_data(
    tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, numbered(20, "interrupted"))

    def interrupted(found: Corpus, tokenizer: TextTokenizer) -> Iterator[Any]:
        yield next(found.pieces()), np.array([1] * 100)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tokens, "token_runs", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(path, tokenizer, block_size=8)
    assert texts_of(load(path, tokenizer, block_size=8).train, tokenizer) == numbered(20, "interrupted")


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 4 * 2])


def fill_with_zeros(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("harm", [cut_in_half, fill_with_zeros, flip_a_bit, Path.unlink])
@pytest.mark.parametrize("name", ["ids.bin", "ends.npy", "learned.bin"])
def test_damaged_tokens_are_made_anew(
    tmp_path: Path,
    tokenizer: TextTokenizer,
    capsys: pytest.CaptureFixture[str],
    harm: Callable[[Path], None],
    name: str,
) -> None:
    """A crash may leave them cut or full of zeros, and a disk may lose a bit."""
    rows_of_table = [{"prompt": f"{harm} {name}", "completion": f" {n} owls."} for n in range(50)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of_table))
    before = load(tmp_path / "t.jsonl", tokenizer, block_size=16)
    expected = [{key: value.tolist() for key, value in row.items()} for row in before.train]
    capsys.readouterr()
    harm(Path(before.train.tokens.ids.filename).parent / name)
    after = load(tmp_path / "t.jsonl", tokenizer, block_size=16)
    assert [{key: value.tolist() for key, value in row.items()} for row in after.train] == expected
    assert f"are damaged, {name if harm != Path.unlink else 'it lacks ' + name}" in capsys.readouterr().err
    assert after.fingerprints == before.fingerprints


def test_tokens_of_an_earlier_version_are_made_anew(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    """They had no checksums."""
    path = write(tmp_path, numbered(30, "earlier"))
    before = load(path, tokenizer)
    folder = Path(before.train.tokens.ids.filename).parent
    (folder / "manifest.json").unlink()
    fill_with_zeros(folder / "ids.bin")
    after = load(path, tokenizer)
    assert texts_of(after.train, tokenizer) == numbered(30, "earlier")
    assert after.fingerprints == before.fingerprints  # a run that was started with them can be resumed


def test_tokens_are_synced_before_they_get_their_name(
    tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[int | str] = []
    sync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda file: (happened.append(os.fstat(file).st_ino), sync(file)))
    monkeypatch.setattr(Path, "rename", lambda self, target: (happened.append("named"), rename(self, target))[1])
    folder = Path(load(write(tmp_path, numbered(9, "synced")), tokenizer).train.tokens.ids.filename).parent
    named = happened.index("named")
    for path in (folder, *folder.iterdir()):
        assert path.stat().st_ino in happened[:named]
    assert folder.parent.stat().st_ino in happened[named:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_text("omega\n" * 20), "changed while it was read"),
        (lambda path: path.write_text("alpha\n" * 21), "changed while it was read"),
        (lambda path: path.write_text("alpha\n" * 19), "changed while it was read"),
        (lambda path: path.write_bytes(b"\xff\xfe" * 20), "changed while it was read"),
        (lambda path: path.write_bytes(b"\0" * 20), "changed while it was read"),
        (Path.unlink, "cannot be read a second time: No such file"),
    ],
    ids=["other words", "longer", "shorter", "no text", "zeros", "gone"],
)
def test_text_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, tokenizer: TextTokenizer, change: Callable[[Path], object], message: str
) -> None:
    """It is read twice. What was read the second time must not be kept as that of the first."""
    lines = [f"alpha {tmp_path.name}", *["alpha"] * 19]
    path = write(tmp_path, lines)
    options = TrainingOptions(train_file=str(path), validation_split=0)
    sources = plan_sources(options)
    change(path)
    for read_again in (lambda: load_data(sources, tokenizer, options), lambda: train_tokenizer(sources[0], 270)):
        with pytest.raises(UserError, match=message) as refusal:
            read_again()
        assert refusal.value.option == "train_file"
        assert str(path) in str(refusal.value)
    write(tmp_path, lines)
    assert texts_of(load(path, tokenizer).train, tokenizer) == lines


def test_leftovers_of_killed_runs_are_removed(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    """Not of one that is still at work, whose lock is held."""
    left, older, at_work = (tokens.CACHE / f"unfinished-{name}" for name in ("ab12-xyz", "q8w_3k", "cd34-uvw"))
    for folder in (left, older, at_work):
        (folder / "whole").mkdir(parents=True)
        (folder / "whole" / "ids.bin").write_bytes(bytes(100))
    (tokens.CACHE / "locks").mkdir(exist_ok=True)
    with FileLock(tokens.CACHE / "locks" / "cd34"):
        load(write(tmp_path, numbered(5, "left over")), tokenizer)
        assert sorted(tokens.CACHE.glob("unfinished-*")) == [at_work]
    load(write(tmp_path, numbered(5, "left over")), tokenizer)
    assert not list(tokens.CACHE.glob("unfinished-*"))


def test_two_runs_at_once_tokenize_a_text_once(
    tmp_path: Path, tokenizer: TextTokenizer, tokenized: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, told = write(tmp_path, numbered(20, "at once")), threading.Event()
    monkeypatch.setattr(tokens, "_say", lambda text: told.set())
    made = tokens.token_runs

    def waited_for(found: Corpus, tokenizer: TextTokenizer) -> Iterator[Any]:
        assert told.wait(20)
        return made(found, tokenizer)

    monkeypatch.setattr(tokens, "token_runs", waited_for)
    with ThreadPoolExecutor(2) as runs:
        for found in [runs.submit(load, path, tokenizer) for _ in range(2)]:
            assert texts_of(found.result().train, tokenizer) == numbered(20, "at once")
    assert tokenized == [path]


# ---- workers ----


@pytest.mark.parametrize("alone", [False, True])
def test_workers_open_the_tokens_by_their_name(tmp_path: Path, tokenizer: TextTokenizer, alone: bool) -> None:
    """Where processes are started anew, data and collator are pickled: the tokens must not travel."""
    loaded = load(write(tmp_path, [f"worker {n} " + "x" * 500 for n in range(300)]), tokenizer, no_cross_examples=alone)
    sent = pickle.dumps((loaded.train, collate(128, tokenizer.end_id)))
    assert len(sent) < loaded.train.tokens.ids.nbytes / 4
    blocks, batch_of = pickle.loads(sent)
    assert isinstance(blocks.tokens.ids, np.memmap)
    here, there = (
        made([blocks[i] for i in (0, 3)])
        for made, blocks in ((collate(128, tokenizer.end_id), loaded.train), (batch_of, blocks))
    )
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)


def test_tokens_stay_on_disk(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    loaded = load(write(tmp_path, numbered(100, "mapped")), tokenizer, block_size=8)
    assert isinstance(loaded.train.tokens.ids, np.memmap)
