"""The held-out examples: their share, their order, and copies."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from data_helpers import (
    EXAMPLES,
    cut_by_hand,
    encode_by_hand,
    held_out_texts,
    ids_of,
    load,
    numbered,
    rows,
    stories,
    texts_of,
    write,
)

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.errors import UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.reading import plain_text
from gpt2tg.training.data.sources import plan_sources


@pytest.mark.parametrize(
    ("examples", "share", "held_out"), [(100, 0.05, 5), (40, 0.5, 20), (10, 0.05, 1), (2, 0.05, 1), (3, 0.99, 2)]
)
def test_a_share_of_the_examples_is_held_out(
    tmp_path: Path, tokenizer: TextTokenizer, examples: int, share: float, held_out: int
) -> None:
    """At least one example is held out, but never all."""
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


@pytest.mark.parametrize(
    ("lengths", "share"),
    [([3000, 1], 0.05), ([3000, 2000], 0.05), ([900] * 19, 0.05), ([3000, 150, 150, 40], 0.05), ([900] * 3, 0.5)],
    ids=["book and note", "two books", "19 stories", "book and stories", "half"],
)
def test_few_files_hold_out_their_share_of_the_tokens(
    tmp_path: Path, tokenizer: TextTokenizer, lengths: list[int], share: float
) -> None:
    """For any seed, only the ends of files are held out, never a whole book, and the rest is trained on."""
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


def test_long_completion_is_cut_into_both_sides(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    rows = [{"prompt": "count " * 200, "completion": f" {n} owl" * 100} for n in range(2)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load(tmp_path / "t.jsonl", tokenizer, validation_split=0.2, block_size=16)
    total = sum(len(encode_by_hand([row["completion"]], tokenizer)) for row in rows)
    held_out = tokenizer.raw.decode(ids_of(found.validation))
    assert "count" not in held_out
    assert len(ids_of(found.validation)) == pytest.approx(0.2 * total, rel=0.1)


def test_examples_of_similar_length_are_drawn_by_number(tmp_path: Path) -> None:
    """Same split as in earlier versions, whose runs can be resumed."""
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


def test_nothing_is_held_out_of_copies_of_one_text(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    found = load(write(tmp_path, ["the same"] * 50), tokenizer, validation_split=0.05, block_size=8)
    assert (found.validation, found.train_examples) == (None, 50)


def test_a_training_file_is_required() -> None:
    with pytest.raises(UserError) as caught:
        plan_sources(TrainingOptions())
    assert caught.value.option == "train_file"


@pytest.mark.parametrize("option", ["train_file", "validation_file"])
def test_error_names_the_option_of_the_file(tmp_path: Path, text_file: Path, option: str) -> None:
    missing = tmp_path / "nowhere.txt"
    with pytest.raises(UserError) as caught:
        plan_sources(TrainingOptions(**{"train_file": str(text_file), option: str(missing)}))
    assert caught.value.option == option
    assert str(missing) in caught.value.message
