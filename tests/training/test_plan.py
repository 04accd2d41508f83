"""Output before training: advice on the data, the plan of a run, the preview of blocks."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config

from gpt2tg.checkpoint.config import read_shape
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.errors import UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.training.data.sources import plan_sources
from gpt2tg.training.data.training_data import load_data
from gpt2tg.training.finetune import finetune
from gpt2tg.training.plan import evaluated_steps, kept_attention, most_checkpoints, plan, total_steps


def test_plan_lists_steps_checkpoints_and_memory(text_file: Path, model_dir: Path, tokenizer: TextTokenizer) -> None:
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
    saved = {*range(4, steps + 1, 4), *(epoch * steps // 3 for epoch in (1, 2, 3))}  # each epoch may be a new best
    assert f"checkpoints: {len(saved)} at most, of" in lines[4]
    assert re.search(r"memory: about \d+ MB \(weights", lines[5])
    by_three = list(plan(options, config, read_shape(model_dir), data, torch.device("cpu"), processes=3))
    assert f"steps: {3 * -(-len(data.train) // 6)} of 6 blocks" in by_three


@pytest.mark.parametrize(
    ("settings", "steps"),
    [({}, 15), ({"epochs": 1.5}, 8), ({"max_steps": 7}, 7), ({"gradient_accumulation_steps": 4}, 6)],
)
def test_steps_equal_those_of_the_trainer(settings: dict, steps: int) -> None:
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
def test_checkpoint_count_includes_saves_and_evaluations(settings: dict, kept: set[int]) -> None:
    """25 steps, 20 steps an epoch, a save every 10 steps; by default two checkpoints are kept besides the best."""
    options = TrainingOptions(save_steps=10, **settings)
    evaluated = evaluated_steps(options, steps=25, epoch_steps=20)
    assert evaluated == {20, 25} | {step for step in (8, 16, 24) if options.eval_steps}
    assert most_checkpoints(options, 25, evaluated) == len(kept)
    assert most_checkpoints(options, 25, set()) == min(3, options.save_total_limit or 3)


def test_dry_run_with_frozen_layers(text_file: Path, model_dir: Path, capsys: pytest.CaptureFixture) -> None:
    options = TrainingOptions(train_file=str(text_file), block_size=32, batch_size=1, dry_run=True, freeze_layers=2)
    finetune(options, str(model_dir))
    assert "time: about " in capsys.readouterr().out
    with pytest.raises(UserError, match="freeze_layers 3 is more than the 2 layers of the model"):
        finetune(replace(options, freeze_layers=3), str(model_dir))


@pytest.mark.parametrize(
    ("device", "settings", "expected"),
    [
        ("cpu", {"dropout": 0.0}, "none"),
        ("cpu", {}, "chunks"),  # the model's own dropout
        ("cpu", {"dropout": 0.0, "bf16": True}, "chunks"),
        ("cpu", {"compile": "on"}, "whole"),
        ("cpu", {"dropout": 0.0, "bf16": True, "compile": "on"}, "none"),
        ("mps", {}, "whole"),
        ("mps", {"dropout": 0.0, "bf16": True}, "none"),
        ("cuda", {}, "none"),
    ],
)
def test_memory_of_attention_follows_what_computes_it(device: str, settings: dict, expected: str) -> None:
    assert kept_attention(GPT2Config(), TrainingOptions(**settings), torch.device(device)) == expected
