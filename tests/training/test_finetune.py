"""Training runs end to end on tiny models: results, files, and refused input."""

from __future__ import annotations

import csv
import gc
import json
import math
import random
import weakref
from dataclasses import replace
from pathlib import Path

import accelerate.utils.memory
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import finetune_gpt2
from gpt2tg.checkpoint.find import numbered_checkpoints
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.engine.contexts import new_context
from gpt2tg.errors import RunError, UserError
from gpt2tg.generation.generator import load
from gpt2tg.options import TrainingOptions, decoding_options
from gpt2tg.training import arguments, report, run, trainer
from gpt2tg.training.finetune import finetune


def quick(text_file: Path, output_dir: Path, **settings: object) -> TrainingOptions:
    """Return the options of a run of a few seconds."""
    defaults = dict(block_size=16, batch_size=2, max_steps=4, save_steps=2, learning_rate=1e-3, logging_steps=1)
    return TrainingOptions(train_file=str(text_file), output_dir=str(output_dir), **{**defaults, **settings})


def test_transformers_and_our_engine_agree_on_the_result(text_file: Path, model_dir: Path, tmp_path: Path) -> None:
    outcome = finetune(quick(text_file, tmp_path / "out"), str(model_dir))
    text = "Two bells argued about the hour"
    for directory in [outcome.output_dir, *numbered_checkpoints(outcome.output_dir)]:
        theirs = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True).eval()
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        ours = load(str(directory))
        ids = ours.tokenizer.encode(text)
        assert tokenizer(text)["input_ids"] == ids
        assert tokenizer.eos_token_id == theirs.generation_config.eos_token_id == ours.tokenizer.end_id
        with torch.no_grad():
            expected = theirs(torch.tensor([ids])).logits[0, -1]
        torch.testing.assert_close(new_context(ours.model, 64).start([ids])[0], expected, atol=1e-4, rtol=0)


def test_files_of_a_finished_run(text_file: Path, model_dir: Path, tmp_path: Path) -> None:
    outcome = finetune(quick(text_file, tmp_path / "out"), str(model_dir))
    files = {path.name for path in outcome.output_dir.iterdir()}
    assert files == {
        "checkpoint-2", "checkpoint-4", "config.json", "generation_config.json", "model.safetensors", "run.json",
        "tokenizer.json", "tokenizer_config.json", "training_log.csv", "loss.png", "README.md", ".lock",
    }  # fmt: skip
    run = json.loads((outcome.output_dir / "run.json").read_text())
    assert run["model_name"] == str(model_dir)
    assert run["options"]["max_steps"] == 4
    assert run["figures"]["step"] == outcome.steps == 4
    assert json.loads((outcome.output_dir / "config.json").read_text())["use_cache"] is True


def test_validation_loss_is_the_mean_over_tokens(text_file: Path, model_dir: Path, tmp_path: Path) -> None:
    """The last block is short: a mean over batches would weight its few tokens like a full block."""
    options = quick(text_file, tmp_path / "out", validation_file=str(text_file), max_steps=1, block_size=18)
    outcome = finetune(options, str(model_dir))
    ours = load(str(model_dir))
    stream: list[int] = []
    for line in text_file.read_text().splitlines():
        stream += [*ours.tokenizer.encode(line), ours.tokenizer.end_id]
    model = AutoModelForCausalLM.from_pretrained(model_dir, local_files_only=True).eval()
    total = tokens = 0.0
    for start in range(0, len(stream), 18):
        block = torch.tensor([stream[start : start + 18]])
        with torch.no_grad():
            logprobs = model(block).logits[0, :-1].log_softmax(dim=-1)
        total -= logprobs.gather(1, block[0, 1:, None]).sum().item()
        tokens += block.shape[1] - 1
    assert 1 < len(stream) % 18 < 17
    assert outcome.loss_before == pytest.approx(total / tokens, abs=1e-4)


@pytest.mark.parametrize("alone", [False, True])
def test_tokens_are_counted_without_padding(
    text_file: Path, model_dir: Path, tokenizer: TextTokenizer, tmp_path: Path, alone: bool
) -> None:
    """The text is far smaller than a step, so each step trains on all of it."""
    settings = dict(block_size=64, batch_size=4, gradient_accumulation_steps=8, max_steps=2, validation_split=0)
    finetune(quick(text_file, tmp_path / "out", no_cross_examples=alone, **settings), str(model_dir))
    tokens = sum(len(tokenizer.encode(line)) + 1 for line in text_file.read_text().splitlines())
    with (tmp_path / "out" / "training_log.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]
    assert [int(row["tokens"]) for row in rows] == [tokens, 2 * tokens]
    seconds = float(rows[1]["seconds"]) - float(rows[0]["seconds"])
    assert float(rows[1]["tokens_per_second"]) == pytest.approx(tokens / seconds, rel=0.2)


def test_block_of_one_token_does_not_make_the_loss_nan(text_file: Path, model_dir: Path, tmp_path: Path) -> None:
    """Regression test: a block of a single token has no loss, and its mean was NaN."""
    tokens = sum(len(load(str(model_dir)).tokenizer.encode(line)) + 1 for line in text_file.read_text().splitlines())
    block_size = next(size for size in range(8, 60) if tokens % size == 1)
    options = quick(text_file, tmp_path / "out", validation_file=str(text_file), batch_size=1, block_size=block_size)
    outcome = finetune(replace(options, max_steps=None, epochs=1.0), str(model_dir))
    assert outcome.loss_after is not None
    assert math.isfinite(outcome.loss_after)


def test_model_is_freed_when_its_run_ends(
    text_file: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next trial, or the samples, need its memory. No collection of garbage happens by chance here."""
    load_model, models = run.existing_model, []

    def observed(*given: object) -> object:
        model, tokenizer = load_model(*given)
        models.append(weakref.ref(model))
        return model, tokenizer

    monkeypatch.setattr(run, "existing_model", observed)
    monkeypatch.setattr(accelerate.utils.memory, "gc", gc)  # with accelerate's own collections, which tests skip
    gc.disable()
    try:
        finetune(quick(text_file, tmp_path / "out", max_steps=1), str(model_dir))
    finally:
        gc.enable()
    assert [model() for model in models] == [None]


def test_end_of_text_is_learned(tmp_path: Path, tokenizer: object) -> None:
    """A model that memorised three lines must stop after each, although padding has the id of the end token."""
    lines = ["The owl sold silence.", "A fox counted stars.", "Two bells argued."]
    text = tmp_path / "three.txt"
    text.write_text("\n".join(random.Random(0).choices(lines, k=60)) + "\n")
    options = TrainingOptions(
        train_file=str(text), output_dir=str(tmp_path / "out"), validation_split=0, from_scratch=True, vocab_size=270,
        n_layer=2, n_embd=64, n_head=2, n_positions=64, block_size=24, batch_size=3, max_steps=120, dropout=0.0,
        learning_rate=3e-3, logging_steps=50,
    )  # fmt: skip
    generator = load(str(finetune(options).output_dir))
    for line in lines:
        start = line[: line.index(" ")]
        (sample,) = generator.generate(start, decoding_options({"decoding": "greedy", "max_new_tokens": 40}))
        assert sample.text == line
        assert sample.finish_reason == "eos"


def test_padding_reaches_no_gradient(text_file: Path, model_dir: Path, tmp_path: Path) -> None:
    """The last block is short: a training step must not depend on the padding token."""
    from gpt2tg.training.data.batches import collate

    model = AutoModelForCausalLM.from_pretrained(model_dir, local_files_only=True).eval()
    gradients = []
    for pad in (0, 7):
        batch = collate(8, pad)([{"input_ids": [5, 6, 7, 8, 9, 10, 11, 12]}, {"input_ids": [3, 4, 0]}])
        model.zero_grad()
        model(**batch).loss.backward()
        gradients.append(model.transformer.h[0].attn.c_attn.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1])


def test_seed_determines_the_weights(text_file: Path, model_dir: Path, tmp_path: Path) -> None:
    def weights(seed: int, name: str) -> bytes:
        outcome = finetune(quick(text_file, tmp_path / name, seed=seed, validation_split=0), str(model_dir))
        return (outcome.output_dir / "model.safetensors").read_bytes()

    first = weights(1, "a")
    assert weights(1, "b") == first
    assert weights(2, "c") != first


@pytest.mark.parametrize(
    "settings",
    [{"bf16": True}, {"gradient_checkpointing": True}, {"gradient_accumulation_steps": 2}, {"examples": "file"}],
    ids=str,
)
def test_training_options_lower_the_loss(text_file: Path, model_dir: Path, tmp_path: Path, settings: dict) -> None:
    options = quick(text_file, tmp_path / "out", validation_file=str(text_file), max_steps=20, **settings)
    outcome = finetune(options, str(model_dir))
    assert outcome.loss_before is not None
    assert outcome.loss_after is not None
    assert outcome.loss_after < outcome.loss_before - 0.5


@pytest.mark.parametrize("lora", [False, True])
def test_fp16_on_the_cpu_warns_and_trains_in_fp32(
    text_file: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lora: bool
) -> None:
    weights = {}
    for fp16 in (True, False):
        out = tmp_path / str(fp16)
        finetune(quick(text_file, out, fp16=fp16, lora=lora, max_steps=2), str(model_dir), "cpu")
        told = capsys.readouterr().err.count("--fp16 needs a CUDA GPU, and this run is on cpu: training in fp32")
        assert told == fp16
        weights[fp16] = (out / "model.safetensors").read_bytes()
    assert weights[True] == weights[False]


def test_log_lines_show_loss_speed_and_perplexity(
    text_file: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = finetune(quick(text_file, tmp_path / "out"), str(model_dir))
    out, err = capsys.readouterr()
    assert out == ""
    assert "6 examples is little" in err
    assert err.count("tokens/s") == 4
    assert "learning rate" in err
    assert "before training: validation loss" in err
    assert f"perplexity {math.exp(outcome.loss_before or 0):.2f} before" in err
    assert f"{math.exp(outcome.loss_after or 0):.2f} after" in err


def test_nonfinite_loss_ends_the_run_without_a_checkpoint(text_file: Path, model_dir: Path, tmp_path: Path) -> None:
    """Whether logging, evaluation or only the check before a save finds it."""
    for number, settings in enumerate(({"logging_steps": 1}, {}, {"validation_split": 0}, {"save_steps": 2})):
        defaults = {"learning_rate": 1e30, "max_steps": 8, "save_steps": 100, "logging_steps": 10}
        out = tmp_path / str(number)
        with pytest.raises(RunError, match=r"is not finite at step \d"):
            finetune(quick(text_file, out, **{**defaults, **settings}), str(model_dir))
        assert {path.name for path in out.iterdir()} == {"run.json", "training_log.csv", ".lock"}


def test_dropout_is_kept_unless_given(text_file: Path, model_dir: Path, tmp_path: Path) -> None:
    def dropout(**settings: object) -> float:
        outcome = finetune(quick(text_file, tmp_path / f"out{len(settings)}", **settings), str(model_dir))
        return json.loads((outcome.output_dir / "config.json").read_text())["resid_pdrop"]

    assert dropout() == 0.1
    assert dropout(dropout=0.25) == 0.25


# --- input that is refused before anything is written -------------------------------------------------------------


def test_nonempty_directory_is_refused_and_unchanged(text_file: Path, model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    for settings in ({}, {"overwrite": True}):
        with pytest.raises(UserError):
            finetune(quick(text_file, tmp_path, **settings), str(model_dir))
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]


def test_overwrite_deletes_only_files_of_runs(text_file: Path, model_dir: Path, tmp_path: Path) -> None:
    output_dir = tmp_path / "out"
    finetune(quick(text_file, output_dir), str(model_dir))
    (output_dir / "diary.txt").write_text("mine")
    (output_dir / "checkpoint-of-mine").mkdir()
    finetune(quick(text_file, output_dir, max_steps=1, save_steps=1, overwrite=True), str(model_dir))
    assert (output_dir / "diary.txt").read_text() == "mine"
    assert (output_dir / "checkpoint-of-mine").is_dir()
    assert [path.name for path in numbered_checkpoints(output_dir)] == ["checkpoint-1"]


@pytest.mark.parametrize(
    ("settings", "option", "message"),
    [
        ({"block_size": 65}, "block_size", "65 is over the context length"),
        ({"train_file": ()}, "train_file", "is required"),
        ({"train_file": "/nowhere/at/all.txt"}, "train_file", "does not exist"),
        ({"validation_file": "/nowhere/at/all.txt"}, "validation_file", "does not exist"),
        ({"resume": "newest"}, "resume", "found no checkpoint-N"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    text_file: Path, model_dir: Path, tmp_path: Path, settings: dict, option: str, message: str
) -> None:
    output_dir = tmp_path / "out"
    given = {"train_file": str(text_file), "output_dir": str(output_dir), "block_size": 16, **settings}
    with pytest.raises(UserError, match=message) as caught:
        finetune(TrainingOptions(**given), str(model_dir))
    assert caught.value.option == option
    assert not output_dir.exists()


def test_foreign_run_json_does_not_permit_overwriting(text_file: Path, model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"mine": 1}')
    (tmp_path / "config.json").write_text("mine too")
    with pytest.raises(UserError, match=r"but .* holds none"):
        finetune(quick(text_file, tmp_path, overwrite=True), str(model_dir))
    assert (tmp_path / "config.json").read_text() == "mine too"


def test_overwrite_of_the_base_model_is_refused(text_file: Path, model_dir: Path, tmp_path: Path) -> None:
    finetune(quick(text_file, tmp_path / "out"), str(model_dir))
    with pytest.raises(UserError, match="the model to start from"):
        finetune(quick(text_file, tmp_path / "out", overwrite=True), str(tmp_path / "out" / "checkpoint-2"))
    assert (tmp_path / "out" / "checkpoint-2" / "model.safetensors").is_file()


def test_output_below_a_file_is_refused(text_file: Path, model_dir: Path) -> None:
    with pytest.raises(UserError, match="not a directory that can be written to"):
        finetune(quick(text_file, text_file / "below"), str(model_dir))


def test_sample_prompt_that_is_too_long_is_refused(text_file: Path, model_dir: Path, tmp_path: Path) -> None:
    options = quick(text_file, tmp_path / "out", generate_samples=True, prompt="owl " * 60)
    with pytest.raises(UserError, match="leaves no room in samples of 64"):
        finetune(options, str(model_dir))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("limit", [20_000, 200_000])  # less than the weights, and less than the optimizer's state
def test_disk_that_fills_up_leaves_checkpoints_intact(
    text_file: Path,
    model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    limit: int,
) -> None:
    """A limit on the file size stands in for the full disk, so that each library fails in its own way."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = trainer.LanguageTrainer._save_checkpoint

    def limited(self: trainer.LanguageTrainer, *rest: object) -> None:
        if self.state.global_step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        save(self, *rest)

    monkeypatch.setattr(trainer.LanguageTrainer, "_save_checkpoint", limited)
    words = ["--train_file", text_file, "--model_name", model_dir, "--output_dir", tmp_path / "out", "--block_size", 16]
    words += ["--max_steps", 6, "--save_steps", 2, "--overwrite"]
    try:
        code = finetune_gpt2.main(list(map(str, words)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    told = capsys.readouterr().err
    assert code == 1
    assert "cannot write to" in told.splitlines()[-1]
    assert "error: unexpected" not in told
    load(str(tmp_path / "out" / "checkpoint-2"))


def test_full_disk_is_reported_with_its_cause(
    text_file: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer.LanguageTrainer, "_save_checkpoint", full)
    with pytest.raises(RunError, match="No space left on device"):
        finetune(quick(text_file, tmp_path / "out"), str(model_dir))


def test_idle_gpus_are_reported(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    found = arguments.training_arguments(quick(text_file, tmp_path), torch.device("cuda"))
    assert found.n_gpu == 1
    assert found.train_batch_size == 2
    report.log_idle_gpus(torch.device("cpu"))
    assert capsys.readouterr().err == ""
    report.log_idle_gpus(torch.device("cuda"))
    told = capsys.readouterr().err
    assert told == "3 GPUs are available, one is used: torchrun --nproc_per_node 3 uses all\n"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    report.log_idle_gpus(torch.device("cuda"))
    assert capsys.readouterr().err == ""
