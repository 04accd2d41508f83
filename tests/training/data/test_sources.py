"""Tables, folders and patterns as training text: what is read, what carries loss, what is refused."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.errors import UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.reading import table_row
from gpt2tg.training.data import blocks, packing
from gpt2tg.training.data.blocks import NO_LOSS
from gpt2tg.training.data.corpus import scan_corpus
from gpt2tg.training.data.file_pass import TextFormat
from gpt2tg.training.data.sources import plan_sources
from gpt2tg.training.data.training_data import load_data

TEXTS = ['She said "no", twice.', "two\nlines, with a comma", "naïve 猫 🦊", "  indented\t", "x" * 200_000]


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


WRITERS: dict[str, Callable[[Path, list[dict[str, str]]], Path]] = {
    "t.csv": write_csv,
    "t.tsv": write_csv,
    "t.CSV": write_csv,
    "t.jsonl": write_jsonl,
}


def examples_of(*names: str | Path, text_column: str | None = None) -> list[str]:
    found = scan_corpus(tuple(map(str, names)), TextFormat("line", text_column), "train_file")
    texts = [piece.text for piece in found.pieces()]
    assert len(texts) == found.examples
    return texts


# ---- tables ----


@pytest.mark.parametrize("name", WRITERS)
def test_each_row_of_a_table_is_an_example(tmp_path: Path, name: str) -> None:
    """Quotes, line breaks and commas inside a text belong to the text."""
    path = WRITERS[name](tmp_path / name, [{"id": str(i), "text": text} for i, text in enumerate(TEXTS)])
    assert examples_of(path) == TEXTS


@pytest.mark.parametrize("name", WRITERS)
def test_the_column_can_be_named(tmp_path: Path, name: str) -> None:
    path = WRITERS[name](tmp_path / name, [{"text": "not this", "story": text} for text in TEXTS])
    assert examples_of(path, text_column="story") == TEXTS


@pytest.mark.parametrize("name", WRITERS)
def test_the_only_column_needs_no_name(tmp_path: Path, name: str) -> None:
    assert examples_of(WRITERS[name](tmp_path / name, [{"story": text} for text in TEXTS])) == TEXTS


@pytest.mark.parametrize("name", WRITERS)
def test_rows_without_text_are_skipped_and_counted(tmp_path: Path, name: str) -> None:
    path = WRITERS[name](tmp_path / name, [{"text": text} for text in ("one", "", " \n", "two")])
    assert examples_of(path) == ["one", "two"]
    notices = scan_corpus((str(path),), TextFormat("line"), "train_file").notices
    assert f"{path}: skipped 2 rows without text" in notices


def test_windows_files_give_the_same_texts(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes('\ufefftext,n\r\n"one\r\ntwo",1\r\n'.encode())
    (tmp_path / "t.jsonl").write_bytes('\ufeff{"text": "one\\r\\ntwo"}\r\n'.encode())
    assert examples_of(tmp_path / "t.csv") == examples_of(tmp_path / "t.jsonl") == ["one\ntwo"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "t.csv",
            "title,story\na,b\n",
            "has the columns title, story: choose the one that holds",
        ),
        (
            "t.jsonl",
            '{"a": "x", "b": "y"}\n',
            "has the columns a, b: choose .* with --text_column",
        ),
        ("t.jsonl", '{"text": "x"}\n{"text": 7}\n', "line 2: text is 7, expected a string"),
        (
            "t.jsonl",
            '{"text": "x"}\n\n{"text": \n',
            r"line 3 is not valid JSON \(Expecting value at character 10\): write",
        ),
        ("t.jsonl", "[" * 100_000 + "\n", "line 1 is not valid JSON .*: write it"),
        ("t.ipynb", '{"cells": []}', "would be read as plain text: write one object per line into a .jsonl"),
        ("t.jsonl", '["x"]\n', "line 1 is not a JSON object"),
        ("t.csv", 'text\n"never closed\n', "line 2: .* a quote that is not closed; write a text with quotes like"),
        ("t.tsv", 'id\ttext\n1\t"No," said she.\n', "line 2: .* write a text with quotes like"),
        ("t.csv", "text\n", "holds no text"),
    ],
)
def test_malformed_table_error_names_the_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        examples_of(tmp_path / name)
    assert caught.value.option == "train_file"
    assert str(tmp_path / name) in caught.value.message


def test_overlong_line_error_does_not_advise_quotes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = csv.field_size_limit()
    monkeypatch.setattr(table_row, "MAX_FIELD_CHARACTERS", 10)
    (tmp_path / "t.csv").write_text("text\nlonger than it may be\n")
    try:
        with pytest.raises(UserError, match=r"line 2 is longer than 10 characters: write one row per line$"):
            examples_of(tmp_path / "t.csv")
    finally:
        csv.field_size_limit(limit)


def test_missing_column_is_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", [{"text": "x", "title": "y"}])
    with pytest.raises(UserError, match="has no column story: it has text, title"):
        examples_of(path, text_column="story")


def test_text_column_for_plain_text_is_refused(text_file: Path) -> None:
    with pytest.raises(UserError, match="is plain text") as caught:
        examples_of(text_file, text_column="story")
    assert caught.value.option == "text_column"


# ---- prompt and completion ----


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
@pytest.mark.parametrize("alone", [False, True])
def test_only_the_completion_carries_loss(tmp_path: Path, tokenizer: TextTokenizer, name: str, alone: bool) -> None:
    rows = [{"prompt": f"The owl {n}:", "completion": f" counted {n} stars."} for n in range(5)]
    path = WRITERS[name](tmp_path / name, rows)
    options = TrainingOptions(train_file=str(path), validation_split=0, block_size=512, cross_examples=not alone)
    [block] = load_data(plan_sources(options), tokenizer, options).train
    expected_ids, expected_labels = [], []
    for row in rows:
        prompt, completion = tokenizer.encode(row["prompt"]), [*tokenizer.encode(row["completion"]), tokenizer.end_id]
        expected_ids += prompt + completion
        expected_labels += [NO_LOSS] * len(prompt) + completion
    assert block["input_ids"].tolist() == expected_ids
    assert block["labels"].tolist() == expected_labels


def test_blocks_without_loss_are_dropped(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    """Their mean loss would be 0 / 0."""
    rows = [{"prompt": "The owl counted the stars. " * 20, "completion": "Twice."}]
    options = TrainingOptions(
        train_file=str(write_jsonl(tmp_path / "t.jsonl", rows)), validation_split=0, block_size=16, cross_examples=True
    )
    blocks = load_data(plan_sources(options), tokenizer, options).train
    assert len(blocks) in (1, 2)
    learned = [label for block in blocks for label in block["labels"] if label != NO_LOSS]
    assert learned == [*tokenizer.encode("Twice."), tokenizer.end_id]


@pytest.mark.parametrize("alone", [False, True])
def test_exactly_the_blocks_with_loss_are_kept(
    tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    """Compares with a look at every row, for several block sizes and many chunks of tokens."""
    monkeypatch.setattr(blocks, "CHUNK_TOKENS", 7)
    chance = random.Random(5)
    rows = [
        {"prompt": "owl " * chance.choice([0, 1, 9, 40]), "completion": "ha" * chance.choice([1, 1, 5])}
        for _ in range(30)
    ]
    rows.append({"prompt": "The owl.", "completion": ""})
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    left_out = 0
    for block_size in (4, 5, 7, 16, 61):
        options = TrainingOptions(
            train_file=str(path), validation_split=0.3, block_size=block_size, cross_examples=not alone
        )
        sources = plan_sources(options)
        kept = load_data(sources, tokenizer, options).train
        with monkeypatch.context() as patch:
            patch.setattr(packing, "_drop_blocks_without_loss", lambda blocks: blocks)
            every = load_data(sources, tokenizer, options).train
        expected = [row for row in every if any(label != NO_LOSS for label in row["labels"][1:])]
        assert [row["input_ids"].tolist() for row in kept] == [row["input_ids"].tolist() for row in expected]
        left_out += len(every) - len(kept)
    assert left_out > 20


# ---- several files ----


def test_several_files_are_read_in_the_order_given(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("from b\n")
    write_jsonl(tmp_path / "a.jsonl", [{"text": "from a"}])
    assert examples_of(tmp_path / "b.txt", tmp_path / "a.jsonl") == ["from b", "from a"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "below").mkdir()
    (tmp_path / "b.txt").write_text("from b\n")
    (tmp_path / "a.md").write_text("from a\n")
    (tmp_path / "below" / "c.txt").write_text("from c\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    return tmp_path


def test_a_folder_stands_for_its_text_files(folder: Path) -> None:
    assert examples_of(folder) == ["from a", "from b", "from c"]


def test_a_pattern_stands_for_matching_files(folder: Path) -> None:
    assert examples_of(folder / "*.txt") == ["from b"]
    assert examples_of(folder / "**" / "*.txt") == ["from b", "from c"]


def test_a_file_may_have_a_name_like_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "[draft] 1.txt").write_text("mine\n")
    assert examples_of(tmp_path / "[draft] 1.txt") == ["mine"]


def test_a_pattern_without_a_match_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="matches no file"):
        examples_of(tmp_path / "*.txt")


def test_held_out_examples_come_from_all_files(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} {n}\n" for n in range(40)))
    _, measured = plan_sources(TrainingOptions(train_file=str(tmp_path), validation_split=0.5))
    assert measured is not None
    assert {piece.text[0] for piece in measured} == {"a", "b"}
