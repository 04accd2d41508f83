"""Training on conversations: whole rows, loss on answers alone, and the template in the checkpoint."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from gpt2tg.checkpoint.checkpoint import read_checkpoint
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.generation.generator import load
from gpt2tg.options import EvaluationOptions, TrainingOptions
from gpt2tg.training.data.blocks import NO_LOSS
from gpt2tg.training.data.sources import plan_sources
from gpt2tg.training.data.training_data import load_data
from gpt2tg.training.evaluate import evaluate
from gpt2tg.training.finetune import finetune
from gpt2tg.training.output.identity import like_before
from gpt2tg.training.preview import preview_blocks

CPU = torch.device("cpu")

TALKS = [
    [("user", f"owl {n}?"), ("assistant", f"fox {n}"), ("user", "and?"), ("assistant", "ink " * (n % 3 + 1))]
    for n in range(9)
]
MESSAGES = [[{"role": role, "content": content} for role, content in talk] for talk in TALKS]


def write(directory: Path, name: str = "talks.jsonl") -> Path:
    path = directory / name
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in MESSAGES), encoding="utf-8")
    return path


def test_rows_are_whole_and_only_answers_carry_loss(tmp_path: Path, chat_dir: Path, tokenizer: TextTokenizer) -> None:
    """Compares with transformers' tokens of each conversation, and its text after each prompt."""
    options = TrainingOptions(train_file=str(write(tmp_path)), validation_split=0, block_size=120, show_blocks=1)
    sources = plan_sources(options, str(chat_dir))
    data = load_data(sources, tokenizer, options)
    theirs = AutoTokenizer.from_pretrained(chat_dir)
    expected = {}
    for messages in MESSAGES:
        ids = theirs.apply_chat_template(messages, return_dict=False)[:-1]  # without the line break after the end
        labels = [NO_LOSS] * len(ids)
        for turn in (1, 3):
            prompt = theirs.apply_chat_template(messages[:turn], add_generation_prompt=True, return_dict=False)
            answer = theirs.encode(messages[turn]["content"] + "<|endoftext|>")
            labels[len(prompt) : len(prompt) + len(answer)] = answer
        expected[tuple(ids)] = labels
    found = {}
    for row in data.train:
        starts = [*torch.where(torch.from_numpy(row["position_ids"]) == 0)[0].tolist(), len(row["input_ids"])]
        for begin, end in pairwise(starts):
            found[tuple(row["input_ids"][begin:end].tolist())] = row["labels"][begin:end].tolist()
    assert found == expected
    assert data.overlong == 0
    name, *lines = preview_blocks(data, tokenizer, options, sources[0].corpus.chat_template)
    assert name == f"the chat template of {chat_dir}:"
    assert "{% for m in messages %}" in lines[0]
    assert lines[-1].startswith("⟦u:owl ")


def test_checkpoint_carries_the_template_and_evaluates_like_the_run(tmp_path: Path, model_dir: Path) -> None:
    path, out = write(tmp_path), tmp_path / "out"
    options = TrainingOptions(
        train_file=str(path), validation_file=str(path), output_dir=str(out), block_size=64, max_steps=1
    )
    before = finetune(options, str(model_dir))
    assert before is not None
    theirs, ours = AutoTokenizer.from_pretrained(out, local_files_only=True), load(str(out)).chat
    question = MESSAGES[0][:3]
    assert theirs.apply_chat_template(question, tokenize=False, add_generation_prompt=True) == ours.prompt(question)
    assert ours.prompt(question).endswith("User: and?\nAssistant:")
    assert '--chat --prompt "Who are you?"' in (out / "README.md").read_text(encoding="utf-8")
    found = evaluate(read_checkpoint(model_dir), EvaluationOptions(eval_file=str(path)), CPU)
    assert found.loss == pytest.approx(before.loss_before, abs=1e-5)


def test_resumed_run_packs_prompts_as_before(tmp_path: Path) -> None:
    """Runs of earlier versions joined them to one stream."""
    options = TrainingOptions(train_file="t.jsonl")
    for was_apart in (False, True):
        (tmp_path / "manifest.json").write_text(json.dumps({"run": {"options": {"no_cross_examples": was_apart}}}))
        assert like_before(options, tmp_path).cross_examples is not was_apart
