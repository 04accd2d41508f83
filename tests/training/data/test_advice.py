"""Advice on the data before a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.options import TrainingOptions
from gpt2tg.training.data import advice as module
from gpt2tg.training.data.advice import advice
from gpt2tg.training.data.sources import plan_sources
from gpt2tg.training.data.training_data import load_data


def advice_for(path: Path, tokenizer: TextTokenizer, lines: list[str], **settings: Any) -> list[str]:
    (path / "train.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    options = TrainingOptions(train_file=str(path / "train.txt"), **{"block_size": 64, **settings})
    sources = plan_sources(options)
    return list(advice(sources, load_data(sources, tokenizer, options), options))


GOOD = [f"fable number {number}" for number in range(1000)]


def test_good_text_needs_no_advice(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    assert advice_for(tmp_path, tokenizer, GOOD) == []


@pytest.mark.parametrize(
    ("lines", "settings", "words"),
    [
        (GOOD[:999], {}, "999 examples is little"),
        (GOOD + GOOD[:250], {}, "20% of the examples are copies of others"),
        (["the same"] * 1000, {}, "nothing is held out: the examples are copies of one another"),
        (["a fable, much longer than the others" * 9, "x"], {}, "of the tokens are held out, not the 0.05 of"),
        ([*GOOD, "kÃ¤se"], {}, "1 example with letters that an earlier conversion broke"),
        ([*GOOD, "k\N{REPLACEMENT CHARACTER}se"], {}, "1 example with letters that an earlier conversion broke"),
        (GOOD + ["long " * 100] * 3, {"no_cross_examples": True}, "3 examples longer than a block of 64 tokens"),
        (GOOD, {"no_cross_examples": True, "block_size": 10}, "of the blocks is padding"),
    ],
)  # fmt: skip
def test_each_weakness_of_a_text_gets_advice(
    tmp_path: Path, tokenizer: TextTokenizer, lines: list[str], settings: dict, words: str
) -> None:
    assert any(words in line for line in advice_for(tmp_path, tokenizer, lines, **settings))


def test_too_much_held_out_text_gets_a_better_split(
    tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MANY_MEASURED", 640)
    given = dict(validation_split=0.4, block_size=32)
    (line,) = advice_for(tmp_path, tokenizer, GOOD, **given)
    share = re.search(r"tokens are held out and measured .*: --validation_split (\S+) is enough", line)
    assert share
    assert advice_for(tmp_path, tokenizer, GOOD, **{**given, "validation_split": float(share[1])}) == []
    (tmp_path / "valid.txt").write_text("something else\n" * 400)
    given = dict(block_size=32, validation_file=str(tmp_path / "valid.txt"))
    (line,) = [line for line in advice_for(tmp_path, tokenizer, GOOD, **given) if "held out" in line]
    number = re.search(r": --max_eval_examples (\d+) is enough", line)
    assert number
    found = advice_for(tmp_path, tokenizer, GOOD, **given, max_eval_examples=int(number[1]))
    assert not [line for line in found if "takes long" in line]


def test_own_validation_split_of_any_size_needs_no_advice(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    for split, number in (("train", 1000), ("validation", 400)):
        (tmp_path / f"{split}.txt").write_text("".join(f"{split} fable {n}\n" for n in range(number)))
    options = TrainingOptions(dataset_name=str(tmp_path), block_size=64)
    sources = plan_sources(options)
    assert list(advice(sources, load_data(sources, tokenizer, options), options)) == []


def test_held_out_copies_of_training_examples_are_counted(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    (tmp_path / "valid.txt").write_text("fable number 3\nsomething else\nfable number 5\n")
    found = advice_for(tmp_path, tokenizer, GOOD, validation_file=str(tmp_path / "valid.txt"))
    assert [line for line in found if "2 of 3 held-out examples are learned from too" in line]
