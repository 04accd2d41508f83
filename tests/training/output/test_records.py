"""The records of a run: log, plot, run.json, model card and samples."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import finetune_gpt2
import generate_from_finetuned
from gpt2tg.checkpoint.runs import choose_checkpoint, saved_checkpoints
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.errors import UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.training import samples as sampling
from gpt2tg.training.data.sources import plan_sources
from gpt2tg.training.finetune import finetune
from gpt2tg.training.outcome import Outcome
from gpt2tg.training.output import records

Capture = pytest.CaptureFixture[str]

DRAWS_PICTURES = True


@pytest.fixture(scope="module")
def options(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingOptions:
    """A run that memorises six lines with a far too high learning rate, so that its validation loss soon rises."""
    return TrainingOptions(
        train_file=str(text_file), output_dir=str(tmp_path_factory.mktemp("run") / "out"), block_size=16,
        batch_size=2, epochs=4.0, save_steps=8, learning_rate=0.02, logging_steps=2, save_total_limit=1, sample_steps=5,
        num_samples=2, prompt="The owl", eval_steps=4,
    )  # fmt: skip


@pytest.fixture(scope="module")
def outcome(options: TrainingOptions, model_dir: Path) -> Outcome:
    return finetune(options, str(model_dir))


def rows(directory: Path) -> list[dict[str, str]]:
    with (directory / "training_log.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_log_file_has_a_row_per_log_and_evaluation(
    options: TrainingOptions, outcome: Outcome, tokenizer: TextTokenizer
) -> None:
    lines = rows(outcome.output_dir)
    assert [int(row["step"]) for row in lines if row["loss"]] == list(range(2, 25, 2))
    assert [int(row["step"]) for row in lines if row["validation_loss"]] == [0, 4, 6, 8, 12, 16, 18, 20, 24]
    epoch = sum(len(tokenizer.encode(piece.text)) + 1 for piece in plan_sources(options)[0])  # in 6 steps
    assert [int(row["tokens"]) for row in lines if row["loss"]][2::3] == [epoch * n for n in range(1, 5)]
    seconds = [float(row["seconds"]) for row in lines if row["seconds"]]
    assert seconds == sorted(seconds)


def test_directory_holds_the_best_model(outcome: Outcome) -> None:
    out = outcome.output_dir
    losses = {int(row["step"]): float(row["validation_loss"]) for row in rows(out) if row["validation_loss"]}
    del losses[0]
    best = min(losses, key=lambda step: losses[step])
    assert best < 24, "this run should overfit"
    assert outcome.held_step == best
    assert outcome.loss_after == losses[best]
    assert {saved.step for saved in saved_checkpoints(out)} == {best, 24}
    weights = (out / "model.safetensors").read_bytes()
    assert weights == (out / f"checkpoint-{best}" / "model.safetensors").read_bytes()
    assert weights != (out / "checkpoint-24" / "model.safetensors").read_bytes()
    assert choose_checkpoint(str(out), "best").name == f"checkpoint-{best}"


def test_keep_last_and_early_stopping(
    options: TrainingOptions, outcome: Outcome, model_dir: Path, tmp_path: Path
) -> None:
    patient = replace(options, output_dir=str(tmp_path), keep="last", early_stopping_patience=2, sample_steps=None)
    ended = finetune(patient, str(model_dir))
    measured = [int(row["step"]) for row in rows(outcome.output_dir) if row["validation_loss"]]
    assert ended.steps == measured[measured.index(outcome.held_step) + 2]
    assert ended.held_step == ended.steps
    again = finetune(replace(patient, resume="newest"), str(model_dir))
    assert again.steps == ended.steps
    assert finetune(replace(patient, resume="newest", early_stopping_patience=None), str(model_dir)).steps == 24


def test_frequent_saves_draw_one_plot(
    text_file: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(records, "draw_losses", lambda history, *_: drawn.append(history[-1]["step"]))
    options = TrainingOptions(
        train_file=(str(text_file),), output_dir=str(tmp_path / "out"), validation_split=0, max_steps=5,
        save_steps=1, logging_steps=1, block_size=32, batch_size=1,
    )  # fmt: skip
    finetune(options, str(model_dir))
    assert drawn == [1, 5]


def test_plot_contains_all_curves(outcome: Outcome) -> None:
    from PIL import Image

    with Image.open(outcome.output_dir / "loss.png") as picture:
        picture.load()
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20) or ()}
    assert {(0, 114, 178), (213, 94, 0), (0, 158, 115)} <= colours  # training, validation, lowest


def test_run_json_and_card_describe_the_run(outcome: Outcome, options: TrainingOptions, model_dir: Path) -> None:
    run = json.loads((outcome.output_dir / "run.json").read_text())
    assert run["figures"]["step"] == run["figures"]["of_steps"] == 24
    assert run["figures"]["best_step"] == run["model"]["step"] == outcome.held_step
    assert run["options"]["learning_rate"] == 0.02
    assert run["data"]["fingerprints"]["training"]
    assert run["device"]
    assert {"gpt2tg", "python", "torch", "transformers", "accelerate"} <= set(run["versions"])
    card = (outcome.output_dir / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert f"those of step {outcome.held_step}" in card
    assert f"| {outcome.loss_after:.4f} |" in card
    assert "![Loss by step](loss.png)" in card
    assert str(model_dir.parent) not in card, "paths are private"
    assert str(outcome.output_dir) not in card
    assert "lora" not in card, "default settings are left out"


def test_samples_are_written_during_training(outcome: Outcome) -> None:
    text = (outcome.output_dir / "samples.md").read_text(encoding="utf-8")
    assert re.findall(r"^## Step (\d+)$", text, re.MULTILINE) == ["5", "10", "15", "20"]
    assert len(re.findall(r"^> The owl", text, re.MULTILINE)) == 8


def test_samples_and_evaluations_do_not_affect_training(
    options: TrainingOptions, outcome: Outcome, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even samples that fail: the run without them has the same weights."""
    plain = replace(
        options, output_dir=str(tmp_path / "plain"), sample_steps=None, eval_steps=None, validation_split=0.05
    )
    finetune(plain, str(model_dir))

    def fails(*_: object) -> list[str]:
        torch.manual_seed(0)  # even one that changes the random state
        raise RuntimeError("out of ink")

    monkeypatch.setattr(sampling.Samples, "_generate", fails)
    failing = replace(options, output_dir=str(tmp_path / "failing"))
    finetune(failing, str(model_dir))
    weights = (outcome.output_dir / "checkpoint-24" / "model.safetensors").read_bytes()
    for name in ("plain", "failing"):
        assert (tmp_path / name / "checkpoint-24" / "model.safetensors").read_bytes() == weights


def test_generation_from_each_checkpoint(outcome: Outcome, capsys: Capture) -> None:
    out = str(outcome.output_dir)
    assert generate_from_finetuned.main(["--model_path", out, "--list"]) == 0
    printed = capsys.readouterr().out
    assert re.search(rf"^ +{outcome.held_step} .* best, in the directory itself$", printed, re.MULTILINE)
    assert re.search(r"^ +24 .* last$", printed, re.MULTILINE)
    words = ["--model_path", out, "--decoding", "greedy", "--max_new_tokens", "5", "--prompt", "The owl"]
    texts = {}
    for which in ("best", "last", str(outcome.held_step), None):
        assert generate_from_finetuned.main([*words, *(["--checkpoint", which] if which else [])]) == 0
        texts[which] = capsys.readouterr().out
    assert texts["best"] == texts[str(outcome.held_step)] == texts[None]
    assert generate_from_finetuned.main([*words, "--checkpoint", "7"]) == 2
    assert "--checkpoint 7: " in capsys.readouterr().err
    assert generate_from_finetuned.main([*words, "--checkpoint", "newest"]) == 2


def test_missing_report_service_is_refused(options: TrainingOptions, model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"clipboard is not installed here, or not one of .*tensorboard"):
        finetune(replace(options, output_dir=str(tmp_path / "out"), report_to=("clipboard",)), str(model_dir))
    assert not (tmp_path / "out").exists()


def test_early_stopping_without_validation_is_refused(capsys: Capture, text_file: Path, tmp_path: Path) -> None:
    words = ["--train_file", str(text_file), "--output_dir", str(tmp_path / "out"), "--validation_split", "0"]
    assert finetune_gpt2.main([*words, "--early_stopping_patience", "2"]) == 2
    assert "--early_stopping_patience 2 needs a validation loss" in capsys.readouterr().err


def test_unused_adapter_flags_are_reported(capsys: Capture, tmp_path: Path) -> None:
    words = ["--train_file", str(tmp_path / "nothing.txt"), "--output_dir", str(tmp_path / "out"), "--no_merge"]
    assert finetune_gpt2.main([*words, "--lora_rank", "4"]) == 2
    told = capsys.readouterr().err
    assert "--lora_rank is not used: only --lora trains an adapter" in told
    assert "--no_merge is not used" in told
    assert finetune_gpt2.main([*words, "--lora"]) == 2
    assert "not used" not in capsys.readouterr().err
