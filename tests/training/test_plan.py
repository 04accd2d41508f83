"""What is said before work: advice on the data, the plan of a run, the blocks as the model sees them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config

from gpt2tg.checkpoint.find import read_shape
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.errors import UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.training import plan as planning
from gpt2tg.training.data import advice as module
from gpt2tg.training.data.advice import advice
from gpt2tg.training.data.sources import plan_sources
from gpt2tg.training.data.training_data import load_data
from gpt2tg.training.finetune import finetune
from gpt2tg.training.plan import measure_pace, measured_steps, most_checkpoints, plan, show_blocks, total_steps


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
def test_each_weakness_of_a_text_is_named(
    tmp_path: Path, tokenizer: TextTokenizer, lines: list[str], settings: dict, words: str
) -> None:
    assert any(words in line for line in advice_for(tmp_path, tokenizer, lines, **settings))


def test_much_held_out_text_is_named_with_a_share_that_is_enough(
    tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MANY_MEASURED", 640)
    given = dict(validation_split=0.4, block_size=32)
    (line,) = advice_for(tmp_path, tokenizer, GOOD, **given)
    share = re.search(r"tokens are held out and measured .*: --validation_split (\S+) is enough", line)
    assert share
    assert advice_for(tmp_path, tokenizer, GOOD, **{**given, "validation_split": float(share[1])}) == []
    (tmp_path / "valid.txt").write_text("something else\n" * 400)
    found = advice_for(tmp_path, tokenizer, GOOD, block_size=32, validation_file=str(tmp_path / "valid.txt"))
    assert [line for line in found if line.endswith("a shorter --validation_file is enough")]


def test_copies_on_both_sides_are_counted(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    (tmp_path / "valid.txt").write_text("fable number 3\nsomething else\nfable number 5\n")
    found = advice_for(tmp_path, tokenizer, GOOD, validation_file=str(tmp_path / "valid.txt"))
    assert [line for line in found if "2 of 3 held-out examples are learned from too" in line]


def test_the_plan_of_a_run(text_file: Path, model_dir: Path, tokenizer: TextTokenizer) -> None:
    options = TrainingOptions(
        train_file=str(text_file), validation_file=str(text_file), block_size=32, batch_size=2, epochs=3, save_steps=4
    )
    data = load_data(plan_sources(options), tokenizer, options)
    config = GPT2Config.from_pretrained(model_dir)
    lines = list(plan(options, config, read_shape(model_dir), data, torch.device("cpu")))
    names = [line.partition(":")[0] for line in lines]
    assert names == ["examples", "tokens", "blocks", "steps", "checkpoints", "memory", "time"]
    steps = 3 * -(-len(data.train) // 2)
    assert f"steps: {steps} of 2 blocks" in lines
    saved = {*range(4, steps + 1, 4), *(epoch * steps // 3 for epoch in (1, 2, 3))}  # each epoch may be the best
    assert f"checkpoints: {len(saved)} at most, of" in lines[4]
    assert re.search(r"memory: about \d+ MB \(weights", lines[5])
    by_three = list(plan(options, config, read_shape(model_dir), data, torch.device("cpu"), processes=3))
    assert f"steps: {3 * -(-len(data.train) // 6)} of 6 blocks" in by_three


@pytest.mark.parametrize(
    ("settings", "steps"),
    [({}, 15), ({"epochs": 1.5}, 8), ({"max_steps": 7}, 7), ({"gradient_accumulation_steps": 4}, 6)],
)
def test_steps_are_counted_as_the_trainer_does(settings: dict, steps: int) -> None:
    """17 blocks, 4 in a batch: 5 batches an epoch, the last of them short."""
    assert total_steps(TrainingOptions(**settings), 17) == steps


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"save_total_limit": 0}, {10, 20, 25}),
        ({"save_total_limit": 0, "eval_steps": 8}, {8, 10, 16, 20, 24, 25}),
        ({"eval_steps": 8}, {20, 24, 25}),
        ({"save_total_limit": 1}, {20, 25}),
    ],
)
def test_checkpoints_on_disk_are_those_saved_and_measured(settings: dict, kept: set[int]) -> None:
    """25 steps, 20 of them an epoch, saved every 10; two stay unless told otherwise, and the best beside them."""
    options = TrainingOptions(save_steps=10, **settings)
    measured = measured_steps(options, steps=25, epoch=20)
    assert measured == {20, 25} | {step for step in (8, 16, 24) if options.eval_steps}
    assert most_checkpoints(options, 25, measured) == len(kept)
    assert most_checkpoints(options, 25, set()) == min(3, options.save_total_limit or 3)


def test_frozen_layers_cost_no_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a model of known times: 5 + 2 a layer forward, 7 + 3 for each trained one back, 1 for each to update."""

    def times(options: TrainingOptions, config: GPT2Config, layers: int, device: torch.device) -> list[float]:
        trained = layers - options.freeze_layers
        assert trained >= 0
        return [5.0 + 2 * layers, 7.0 + 3 * trained, 1.0 * trained]

    monkeypatch.setattr(planning, "_time", times)
    for frozen in (0, 1, 9, 12):
        pace = measure_pace(TrainingOptions(freeze_layers=frozen), GPT2Config(n_layer=12), torch.device("cpu"))
        assert (pace.forward, pace.backward, pace.update) == (29, 7 + 3 * (12 - frozen), 12 - frozen)


def test_a_dry_run_freezes_what_the_run_would(text_file: Path, model_dir: Path, capsys: pytest.CaptureFixture) -> None:
    options = TrainingOptions(train_file=str(text_file), block_size=32, batch_size=1, dry_run=True, freeze_layers=2)
    finetune(options, str(model_dir))
    assert "time: about " in capsys.readouterr().out
    with pytest.raises(UserError, match="freeze_layers 3 is more than the 2 layers of the model"):
        finetune(replace(options, freeze_layers=3), str(model_dir))


def test_shown_blocks_mark_what_carries_no_loss(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    rows = [{"prompt": f"Owl {n}:", "completion": " flew."} for n in range(2)]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = TrainingOptions(train_file=str(path), validation_split=0, block_size=64, show_blocks=3)
    data = load_data(plan_sources(options), tokenizer, options)
    head, text = show_blocks(data, tokenizer, options)
    assert text == "⟦Owl 0:⟧ flew.<|endoftext|>⟦Owl 1:⟧ flew.<|endoftext|>"
    learned = 2 * (len(tokenizer.encode(" flew.")) + 1)
    assert head.startswith("block 0: ")
    assert f"{learned} carry loss" in head


def test_shown_examples_that_do_not_see_each_other_stand_apart(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    (tmp_path / "t.txt").write_text("xy\nyz\n")
    options = TrainingOptions(
        train_file=str(tmp_path / "t.txt"), validation_split=0, block_size=16, no_cross_examples=True, show_blocks=1
    )
    lines = list(show_blocks(load_data(plan_sources(options), tokenizer, options), tokenizer, options))
    assert sorted(lines[1:]) == ["⟦x⟧y<|endoftext|>", "⟦y⟧z<|endoftext|>"]
