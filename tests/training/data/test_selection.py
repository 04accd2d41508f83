"""Which examples are used: at most so many, without copies, and with weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_helpers import load, numbered, texts_of, write

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.errors import UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.training.data.selection import WeightedName, read_weight, repeat_in_passes
from gpt2tg.training.data.sources import plan_sources
from gpt2tg.training.data.training_data import load_data


def sides(tokenizer: TextTokenizer, *names: str, **settings: object) -> tuple[Counter[str], Counter[str]]:
    """How often each example is trained on, and validated on."""
    options = TrainingOptions(train_file=names, **settings)
    data = load_data(plan_sources(options), tokenizer, options)
    return tuple(Counter(texts_of(side, tokenizer) if side else ()) for side in (data.train, data.validation))


def test_at_most_so_many_examples_are_used(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    path = str(write(tmp_path, numbered(100)))
    all_train, all_held_out = sides(tokenizer, path, validation_split=0.3)
    train, held_out = sides(tokenizer, path, validation_split=0.3, max_train_examples=20, max_eval_examples=7)
    assert (train.total(), held_out.total()) == (20, 7)
    assert train <= all_train
    assert held_out <= all_held_out
    more, _ = sides(tokenizer, path, validation_split=0.3, max_train_examples=30)
    assert train < more
    assert sides(tokenizer, path, validation_split=0.3, max_train_examples=1000, max_eval_examples=1000) == (
        all_train, all_held_out,
    )  # fmt: skip


def test_seed_of_the_split_is_apart_from_that_of_the_run(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    path = str(write(tmp_path, numbered(50)))
    first = sides(tokenizer, path, validation_split=0.2, seed=1)
    assert sides(tokenizer, path, validation_split=0.2, seed=2) != first
    assert sides(tokenizer, path, validation_split=0.2, seed=2, split_seed=1) == first


def test_copies_are_dropped_before_the_split(
    tokenizer: TextTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, [*numbered(20), *numbered(15), *numbered(5)])
    train, held_out = sides(tokenizer, str(path), validation_split=0.25, drop_copies=True)
    assert held_out.total() == 5
    assert train + held_out == Counter(numbered(20))
    source, _ = plan_sources(TrainingOptions(train_file=str(path), drop_copies=True))
    assert "20 of 40 examples are copies of others, and dropped" in source.corpus.notices


def test_weights_say_how_often_a_file_is_seen(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    novels, letters = write(tmp_path, numbered(8, "novel"), "n.txt"), write(tmp_path, numbered(6, "letter"), "l.txt")
    train, held_out = sides(tokenizer, f"{novels}=2.5", f"{letters}=0.5", validation_split=0.2)
    plain, same_held_out = sides(tokenizer, str(novels), str(letters), validation_split=0.2)
    assert held_out == same_held_out
    for subject, weight in (("novel", 2.5), ("letter", 0.5)):
        counts = [count for text, count in train.items() if text.startswith(subject)]
        there = sum(text.startswith(subject) for text in plain)
        assert sum(counts) == int(weight * there + 0.5)
        assert set(counts) <= {int(weight), int(weight) + 1}
    limited, _ = sides(tokenizer, f"{novels}=3", str(letters), validation_split=0, max_train_examples=5)
    assert len(limited) == 5
    assert {count for text, count in limited.items() if text.startswith("novel")} <= {3}


def test_last_weight_of_a_file_counts(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    novels, letters = write(tmp_path, numbered(3, "novel"), "n.txt"), write(tmp_path, numbered(3, "letter"), "l.txt")
    train, _ = sides(tokenizer, f"{tmp_path}/*.txt=2", str(letters), f"{novels}=3", validation_split=0)
    assert train == Counter(3 * numbered(3, "novel") + 2 * numbered(3, "letter"))


def test_name_that_ends_like_a_weight_stays_a_name(tmp_path: Path) -> None:
    (tmp_path / "a=3").touch()
    (tmp_path / "b=2.txt").touch()
    assert read_weight(f"{tmp_path}/a=3") == WeightedName(f"{tmp_path}/a=3")
    assert read_weight(f"{tmp_path}/a=3=2") == WeightedName(f"{tmp_path}/a=3", 2)
    assert read_weight(f"{tmp_path}/*=2.txt") == WeightedName(f"{tmp_path}/*=2.txt")
    assert read_weight(f"{tmp_path}/*.txt=0.25") == WeightedName(f"{tmp_path}/*.txt", 0.25)
    assert read_weight("http://x/?q=a") == WeightedName("http://x/?q=a")
    for wrong in ("a.txt=0", "a.txt=1001"):
        with pytest.raises(UserError, match=f"train_file {wrong}: a weight is more than 0 and at most 1000"):
            read_weight(wrong)


def test_weight_of_a_single_example_is_refused(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    path = write(tmp_path, ["one"])
    with pytest.raises(UserError, match="the text is a single example: raise --epochs instead"):
        load(Path(f"{path}=2"), tokenizer)


def test_ends_of_long_texts_are_limited_too(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    path = write(tmp_path, [f"{word} " * 4000 for word in ("owl", "fox", "cat", "bee")])
    all_data = load(path, tokenizer, validation_split=0.2)
    data = load(path, tokenizer, validation_split=0.2, max_train_examples=2, max_eval_examples=1)
    assert (all_data.validation_examples, data.validation_examples) == (4, 1)
    assert data.train_examples == 2
    assert data.train_tokens == pytest.approx(all_data.train_tokens / 2, rel=0.3)


def test_repeated_spans_come_in_passes() -> None:
    starts, ends = repeat_in_passes(np.array([0, 5, 9]), np.array([5, 9, 12]), np.array([3, 1, 2]))
    assert starts.tolist() == [0, 5, 9, 0, 9, 0]
    assert ends.tolist() == [5, 9, 12, 5, 12, 5]
