"""A resumed run equals the uninterrupted one: the same losses and the same weights, bit for bit."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import modification_times
from safetensors.torch import load_file
from transformers import get_cosine_schedule_with_warmup
from transformers.trainer_pt_utils import safe_globals

from gpt2tg.checkpoint.runs import saved_checkpoints
from gpt2tg.errors import Interrupted, RunError, UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.training import run as training_run
from gpt2tg.training.finetune import finetune
from gpt2tg.training.output.identity import check_same_run
from gpt2tg.training.output.resumable import find_resumable
from gpt2tg.training.trainer import LanguageTrainer

# There are 12 training blocks, or 14 if none are held out: with batches of 2 an epoch has 6 or 7 batches.
BASE = dict(block_size=16, batch_size=2, save_steps=2, learning_rate=1e-3, logging_steps=3, save_total_limit=0)

GRID = {
    "steps": dict(max_steps=8, dropout=0.3),
    "epochs": dict(
        epochs=2.0, eval_steps=2, optim="rmsprop", lr_scheduler_type="reduce_lr_on_plateau",
        lr_scheduler_kwargs=("patience=0", "threshold=0.5", "factor=0.5"),
    ),
    "accumulation": dict(max_steps=7, gradient_accumulation_steps=5, logging_steps=2),
    "checkpointing": dict(epochs=1.5, gradient_checkpointing=True, lr_scheduler_type="cosine", warmup_steps=2),
    "both": dict(epochs=3.0, gradient_accumulation_steps=2, gradient_checkpointing=True, dropout=0.2),
    "muon": dict(epochs=2.0, optim="muon", weight_decay=0.1, lr_scheduler_type="cosine", dropout=0.2),
    "bf16": dict(max_steps=9, bf16=True, weight_decay=0.1, validation_split=0),
}  # fmt: skip


@contextmanager
def interrupted_at(step: int, number: int = signal.SIGTERM) -> Iterator[None]:
    """Send a real signal to this process in the middle of a step; only one, because a second would end the tests."""
    compute = LanguageTrainer.training_step
    sent: list[int] = []

    def training_step(self: LanguageTrainer, *arguments: object, **settings: object) -> torch.Tensor:
        if self.state.global_step == step - 1 and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)
        return compute(self, *arguments, **settings)

    LanguageTrainer.training_step = training_step
    try:
        yield
    finally:
        LanguageTrainer.training_step = compute


def log(directory: Path) -> list[dict[str, str]]:
    """Return the rows of the log, without the columns that vary."""
    with (directory / "training_log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in ("tokens_per_second", "seconds", "memory_gb")} for row in rows]


def same_run(one: Path, other: Path) -> None:
    last, twin = saved_checkpoints(one)[-1], saved_checkpoints(other)[-1]
    assert last.step == twin.step
    for name in ("model.safetensors",):
        assert (last.path / name).read_bytes() == (twin.path / name).read_bytes()
        assert (one / name).read_bytes() == (other / name).read_bytes()
    states = [torch.load(path / "optimizer.pt", weights_only=True)["state"] for path in (last.path, twin.path)]
    for index, moments in states[0].items():
        for name, tensor in moments.items():
            assert torch.equal(tensor, states[1][index][name])
    assert log(one) == log(other)


@pytest.mark.parametrize("name", GRID)
def test_resumed_run_equals_the_uninterrupted_one(text_file: Path, model_dir: Path, tmp_path: Path, name: str) -> None:
    """Interrupted twice: at the end of the first epoch, and at a step between two log entries and two saves."""
    settings = {**BASE, **GRID[name]}
    options = TrainingOptions(train_file=str(text_file), output_dir=str(tmp_path / "straight"), **settings)
    straight = finetune(options, str(model_dir))
    batches = 7 if settings.get("validation_split") == 0 else 6
    steps_per_epoch = math.ceil(batches / settings.get("gradient_accumulation_steps", 1))
    interrupted = replace(options, output_dir=str(tmp_path / "interrupted"))
    for step in (steps_per_epoch, steps_per_epoch + 1):
        with interrupted_at(step), pytest.raises(Interrupted) as stopped:
            finetune(interrupted, str(model_dir))
        assert stopped.value.exit_code == 143
        assert stopped.value.is_saved
        assert saved_checkpoints(tmp_path / "interrupted")[-1].step == step
        interrupted = replace(interrupted, resume="newest")
    resumed = finetune(interrupted, str(model_dir))
    assert resumed.steps == straight.steps
    assert resumed.held_step == straight.held_step
    assert resumed.loss_before == straight.loss_before
    assert resumed.loss_after == straight.loss_after
    same_run(tmp_path / "straight", tmp_path / "interrupted")


@contextmanager
def interrupted_while_evaluating(step: int) -> Iterator[None]:
    """Send a real signal during the evaluation after this step."""
    compute = LanguageTrainer._loss_and_tokens

    def loss_and_tokens(self: LanguageTrainer, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.state.global_step == step and not self.is_interrupted():
            os.kill(os.getpid(), signal.SIGINT)
        return compute(self, batch)

    LanguageTrainer._loss_and_tokens = loss_and_tokens
    try:
        yield
    finally:
        LanguageTrainer._loss_and_tokens = compute


def test_interrupted_evaluation_is_repeated_on_resume(text_file: Path, model_dir: Path, tmp_path: Path) -> None:
    settings = {**BASE, "batch_size": 1, "max_steps": 3, "eval_steps": 2, "validation_split": 0.4, "logging_steps": 1}
    options = TrainingOptions(train_file=str(text_file), output_dir=str(tmp_path / "straight"), **settings)
    finetune(options, str(model_dir))
    interrupted = replace(options, output_dir=str(tmp_path / "interrupted"))
    with interrupted_while_evaluating(0), pytest.raises(Interrupted, match="before the first step") as stopped:
        finetune(interrupted, str(model_dir))
    assert stopped.value.exit_code == 130
    assert not stopped.value.is_saved
    interrupted = replace(interrupted, overwrite=True)
    for _ in range(2):  # the second time before any new step
        with interrupted_while_evaluating(2), pytest.raises(Interrupted) as stopped:
            finetune(interrupted, str(model_dir))
        assert stopped.value.is_saved
        interrupted = replace(interrupted, resume="newest", overwrite=False)
    finetune(interrupted, str(model_dir))
    same_run(tmp_path / "straight", tmp_path / "interrupted")


def test_signal_in_the_last_evaluation_changes_nothing(text_file: Path, model_dir: Path, tmp_path: Path) -> None:
    """Nothing would be left to resume, so the evaluation is completed."""
    settings = {**BASE, "max_steps": 3, "validation_split": 0.4, "logging_steps": 1}
    options = TrainingOptions(train_file=str(text_file), output_dir=str(tmp_path / "straight"), **settings)
    finetune(options, str(model_dir))
    with interrupted_while_evaluating(3):
        finetune(replace(options, output_dir=str(tmp_path / "interrupted")), str(model_dir))
    same_run(tmp_path / "straight", tmp_path / "interrupted")


@pytest.fixture(scope="module")
def whole(text_file: Path, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 6 steps, saved every 2; tests copy it."""
    directory = tmp_path_factory.mktemp("whole") / "out"
    options = TrainingOptions(train_file=str(text_file), output_dir=str(directory), max_steps=6, **BASE)
    finetune(replace(options, keep="last"), str(model_dir))
    return directory


@pytest.fixture
def run(whole: Path, text_file: Path, tmp_path: Path) -> TrainingOptions:
    """The options that resume a copy of that run."""
    shutil.copytree(whole, tmp_path / "out")
    options = TrainingOptions(train_file=str(text_file), output_dir=str(tmp_path / "out"), max_steps=6, **BASE)
    return replace(options, keep="last", resume="newest")


def test_resuming_a_finished_run_does_nothing(
    run: TrainingOptions, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = modification_times(run.output_dir)
    outcome = finetune(run, str(model_dir))
    assert outcome.steps == 6
    assert "nothing to do: the run has reached its end at step 6" in capsys.readouterr().err
    assert modification_times(run.output_dir) == before


def test_resume_publishes_after_a_kill_at_the_end(run: TrainingOptions, model_dir: Path) -> None:
    out = Path(run.output_dir)
    wanted = (out / "model.safetensors").read_bytes()
    for name in ("model.safetensors", "run.json", "README.md"):
        (out / name).unlink()
    finetune(run, str(model_dir))
    assert (out / "model.safetensors").read_bytes() == wanted
    assert (out / "README.md").is_file()


def test_steps_and_epochs_are_totals_over_resumes(
    run: TrainingOptions, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(replace(run, max_steps=8), str(model_dir)).steps == 8
    assert "resuming at step 6 of 8, 2 to go" in capsys.readouterr().err
    assert finetune(replace(run, max_steps=None, epochs=1.5), str(model_dir)).steps == 9


def damage(checkpoint: Path, how: str) -> None:
    weights = checkpoint / "model.safetensors"
    if how == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif how == "flipped bit":
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 16
        weights.write_bytes(content)
    elif how == "no folder":
        shutil.rmtree(checkpoint)
        checkpoint.mkdir()
    else:
        (checkpoint / how).unlink()


@pytest.mark.parametrize(
    "how", ["optimizer.pt", "rng_state.pth", "model.safetensors", "manifest.json", "cut", "flipped bit", "no folder"]
)
def test_damaged_checkpoint_is_named_and_skipped(
    run: TrainingOptions, whole: Path, model_dir: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = Path(run.output_dir) / "checkpoint-6"
    damage(newest, how)
    assert finetune(run, str(model_dir)).steps == 6
    told = [line for line in capsys.readouterr().err.splitlines() if "damaged and skipped" in line]
    assert len(told) == 1
    assert "checkpoint-6 is damaged" in told[0]
    assert (newest / "model.safetensors").read_bytes() == (whole / "checkpoint-6" / "model.safetensors").read_bytes()


def test_resume_from_scratch_reuses_the_tokenizer(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training a tokenizer on gigabytes of text takes long."""
    shape = dict(from_scratch=True, vocab_size=270, n_layer=1, n_embd=16, n_head=1, n_positions=16)
    options = TrainingOptions(
        train_file=str(text_file), output_dir=str(tmp_path / "out"), **{**BASE, **shape, "max_steps": 2}
    )
    finetune(options)

    def train(*_: object) -> None:
        raise AssertionError("the checkpoint has a tokenizer")

    monkeypatch.setattr(training_run, "train_tokenizer", train)
    assert finetune(replace(options, resume="newest", max_steps=3)).steps == 3


@pytest.mark.parametrize("how", ["cut", "gone"])
def test_resume_repairs_a_damaged_published_model(run: TrainingOptions, model_dir: Path, how: str) -> None:
    """As after a power failure: run.json records the model, but its content never reached the disk."""
    model = Path(run.output_dir) / "model.safetensors"
    content = model.read_bytes()
    model.unlink()
    if how == "cut":
        model.write_bytes(b"")
    finetune(run, str(model_dir))
    assert model.read_bytes() == content


def test_all_checkpoints_damaged_fails_and_changes_nothing(run: TrainingOptions, model_dir: Path) -> None:
    out = Path(run.output_dir)
    for saved in saved_checkpoints(out):
        damage(saved.path, random.Random(saved.step).choice(["cut", "flipped bit", "optimizer.pt"]))
    before = modification_times(out)
    with pytest.raises(RunError, match=r"all 3 checkpoints in .* are damaged; nothing was changed"):
        finetune(run, str(model_dir))
    assert modification_times(out) == before


def test_resume_from_an_earlier_checkpoint(run: TrainingOptions, whole: Path, model_dir: Path) -> None:
    """Checkpoints written after that count as newer than those left from before."""
    out = Path(run.output_dir)
    back = replace(run, resume=str(out / "checkpoint-2"), max_steps=5, save_total_limit=3)
    with interrupted_at(3), pytest.raises(Interrupted):
        finetune(back, str(model_dir))
    assert [saved.step for saved in saved_checkpoints(out)] == [4, 6, 3]
    assert log(out)[-1]["step"] == "3"
    assert find_resumable(out, "newest").name == "checkpoint-3"
    with pytest.raises(UserError, match=r"is no checkpoint of --output_dir .*, which holds checkpoint-"):
        finetune(replace(run, resume=str(whole / "checkpoint-2")), str(model_dir))


def test_differences_are_refused_unless_resume_anyway(
    run: TrainingOptions, model_dir: Path, tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other_text = tmp_path / "other.txt"
    other_text.write_text(text_file.read_text().replace("owl", "cat"))
    other_model = tmp_path / "model"
    finetune(replace(run, resume=None, output_dir=str(other_model), max_steps=1), str(model_dir))
    differing = {
        "--block_size 24 now, 16 then": dict(block_size=24),
        "--batch_size 1 now, 2 then; --gradient_accumulation_steps 2 now, 1 then": dict(
            batch_size=1, gradient_accumulation_steps=2
        ),
        "--seed 1 now, 42 then": dict(seed=1),
        "the training text is another": dict(train_file=str(other_text)),
    }
    for message, settings in differing.items():
        with pytest.raises(UserError, match=message):
            finetune(replace(run, **settings), str(model_dir))
    with pytest.raises(UserError, match="the model to start from has other weights"):
        finetune(run, str(other_model))
    with pytest.raises(UserError, match="cannot continue with another model: vocab_size 300"):
        finetune(replace(run, block_size=24, resume_anyway=True), "gpt2-tiny")
    for name, value in {"lora": True, "freeze_layers": 1, "optim": "sgd"}.items():
        with pytest.raises(UserError, match=f"cannot continue: --{name} {value} now, .* then; give the same"):
            finetune(replace(run, max_steps=8, resume_anyway=True, **{name: value}), str(model_dir))
    changed = replace(run, train_file=str(other_text), batch_size=1, max_steps=8, resume_anyway=True)
    assert finetune(changed, str(model_dir)).steps == 8
    err = capsys.readouterr().err
    assert "continuing although this differs: --batch_size 1 now, 2 then" in err


def test_renamed_files_with_equal_content_are_accepted(
    run: TrainingOptions, model_dir: Path, tmp_path: Path, text_file: Path
) -> None:
    moved = tmp_path / "moved"
    Path(run.output_dir).rename(moved)
    shutil.copy(text_file, tmp_path / "renamed.txt")
    shutil.copytree(model_dir, tmp_path / "model")
    options = replace(run, output_dir=str(moved), train_file=str(tmp_path / "renamed.txt"), max_steps=7)
    assert finetune(options, str(tmp_path / "model")).steps == 7


def groups_of(checkpoint: Path) -> list[dict[str, object]]:
    return torch.load(checkpoint / "optimizer.pt", weights_only=True)["param_groups"]


def test_resume_anyway_applies_settings_from_the_next_step(
    run: TrainingOptions, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = dict(
        learning_rate=0.02, weight_decay=0.5, adam_beta2=0.9, trainer=("adam_beta1=0.7",), lr_scheduler_type="cosine",
        warmup_steps=7, logging_steps=1, max_steps=9,
    )  # fmt: skip
    finetune(replace(run, resume_anyway=True, **given), str(model_dir))
    assert "--learning_rate 0.02 now, 0.001 then" in capsys.readouterr().err
    out = Path(run.output_dir)
    rates = {row["step"]: float(row["learning_rate"]) for row in log(out) if row["learning_rate"]}
    stand_in = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.02)
    schedule = get_cosine_schedule_with_warmup(stand_in, num_warmup_steps=7, num_training_steps=9)
    for step in range(1, 10):
        if step > 6:
            assert rates[str(step)] == pytest.approx(schedule.get_last_lr()[0])
        stand_in.step()
        schedule.step()
    decayed, others = groups_of(out / "checkpoint-9")
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.5, 0.0)
    assert decayed["betas"] == others["betas"] == (0.7, 0.9)


def test_lower_learning_rate_applies_in_the_next_step(run: TrainingOptions, model_dir: Path) -> None:
    """With a learning rate near zero the next step leaves the weights unchanged."""
    out = Path(run.output_dir)
    back = replace(run, resume=str(out / "checkpoint-2"), max_steps=3)
    finetune(replace(back, resume_anyway=True, learning_rate=1e-12), str(model_dir))
    before, after = (load_file(out / f"checkpoint-{step}" / "model.safetensors") for step in (2, 3))
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, atol=1e-9, rtol=0)


def test_other_seed_reorders_the_text_and_warns(
    run: TrainingOptions, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(run.output_dir).with_name("copy")
    shutil.copytree(run.output_dir, copy)
    options = replace(run, max_steps=8, logging_steps=1, dropout=0.0, resume_anyway=True)
    finetune(options, str(model_dir))
    assert "those of the checkpoint" not in capsys.readouterr().err
    finetune(replace(options, output_dir=str(copy), seed=1), str(model_dir))
    told = capsys.readouterr().err
    assert "--seed orders the text from here on; weights and random state are those of the checkpoint" in told
    one, other = ({row["step"]: row["loss"] for row in log(Path(out)) if row["loss"]} for out in (run.output_dir, copy))
    assert one["6"] == other["6"]
    assert one["7"] != other["7"]


def run_of(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "manifest.json").read_text())["run"]


def write_run(checkpoint: Path, run: dict[str, Any]) -> None:
    content = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps({**content, "run": run}))


@pytest.mark.parametrize(
    ("then", "now", "told"),
    [
        ({"lora_dropout": ...}, {}, None),
        ({"lora_dropout": ..., "trainer": ..., "no_cross_examples": ...}, {}, None),
        ({"adam_beta2": ...}, {"adam_beta2": 0.9}, "--adam_beta2 0.9 now, 0.999 then"),
        ({"flag_of_later": None, "switch_of_later": False}, {}, None),
        ({"flag_of_later": 3}, {}, "--flag_of_later None now, 3 then"),
        ({}, {"trainer": ["dataloader_num_workers=2", "run_name=owl", "ddp_timeout=9", "hub_model_id=me/owl"]}, None),
        ({"trainer": ["adam_beta1=0.8", "tf32=true"]}, {"trainer": ["tf32=True", "adam_beta1=.80"]}, None),
        ({}, {"trainer": ["adam_beta1=0.9"]}, None),  # the default
        ({"trainer": ["adam_beta1=0.8"]}, {}, "--trainer adam_beta1 None now, 0.8 then"),
        ({"trainer": ["field_of_before=1"]}, {}, "--trainer field_of_before None now, 1 then"),
    ],
)  # fmt: skip
def test_options_of_other_versions_are_compared_by_meaning(
    run: TrainingOptions, then: dict[str, Any], now: dict[str, Any], told: str | None
) -> None:
    checkpoint = Path(run.output_dir) / "checkpoint-6"
    before = run_of(checkpoint)
    write_run(checkpoint, {**before, "options": changed(before["options"], then)})
    here = {**before, "options": changed(before["options"], now)}
    if told is None:
        check_same_run(checkpoint, here, anyway=False)
    else:
        with pytest.raises(UserError, match=re.escape(told)):
            check_same_run(checkpoint, here, anyway=False)


def changed(options: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**options, **change}.items() if value is not ...}


def test_other_tokenizer_is_refused_even_with_anyway(run: TrainingOptions) -> None:
    checkpoint = Path(run.output_dir) / "checkpoint-6"
    before = run_of(checkpoint)
    with pytest.raises(UserError, match="cannot continue with another tokenizer"):
        check_same_run(checkpoint, {**before, "vocabulary": "other words"}, anyway=True)
    write_run(checkpoint, {name: value for name, value in before.items() if name != "vocabulary"})
    check_same_run(checkpoint, before, anyway=True)


def test_interrupted_evaluation_saves_once(
    text_file: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, save = [], LanguageTrainer._save_checkpoint

    def counted(self: LanguageTrainer, *arguments: object) -> None:
        saved.append(self.state.global_step)
        save(self, *arguments)

    monkeypatch.setattr(LanguageTrainer, "_save_checkpoint", counted)
    settings = {**BASE, "save_steps": 100, "max_steps": 5, "eval_steps": 2, "validation_split": 0.4}
    options = TrainingOptions(train_file=str(text_file), output_dir=str(tmp_path / "out"), **settings)
    with interrupted_while_evaluating(2), pytest.raises(Interrupted):
        finetune(options, str(model_dir))
    assert saved == [2]


def test_run_interrupted_at_early_stopping_takes_no_more_steps(
    text_file: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Resumed, it does what it would have done after the evaluation, to the last log entry, and only once."""
    settings = {**BASE, "save_steps": 100, "max_steps": 30, "eval_steps": 2, "validation_split": 0.4}
    options = TrainingOptions(
        train_file=str(text_file), output_dir=str(tmp_path / "straight"), early_stopping_patience=1,
        lr_scheduler_type="constant", **{**settings, "learning_rate": 0.3},
    )  # fmt: skip
    straight = finetune(options, str(model_dir))
    assert 2 < straight.steps < 30
    interrupted = replace(options, output_dir=str(tmp_path / "interrupted"))
    with interrupted_while_evaluating(straight.steps), pytest.raises(Interrupted):
        finetune(interrupted, str(model_dir))
    interrupted = replace(interrupted, resume="newest")
    resumed = finetune(interrupted, str(model_dir))
    assert (resumed.steps, resumed.held_step) == (straight.steps, straight.held_step)
    same_run(tmp_path / "straight", tmp_path / "interrupted")
    ends = [tmp_path / name / f"checkpoint-{straight.steps}" / "rng_state.pth" for name in ("straight", "interrupted")]
    with safe_globals():
        states = [torch.load(path, weights_only=True) for path in ends]
    assert torch.equal(states[0]["cpu"], states[1]["cpu"])
    capsys.readouterr()
    finetune(interrupted, str(model_dir))
    assert f"nothing to do: the run has reached its end at step {straight.steps}" in capsys.readouterr().err
