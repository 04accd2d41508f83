"""Runs that save memory (adapters, frozen layers, smaller batches), and --dry_run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel

import finetune_gpt2
from gpt2tg.engine.contexts import new_context
from gpt2tg.errors import RunError, UserError
from gpt2tg.generation.generator import load
from gpt2tg.options import TrainingOptions
from gpt2tg.training import plan
from gpt2tg.training.finetune import finetune
from gpt2tg.training.model.memory_estimate import smaller_batches
from gpt2tg.training.trainer import LanguageTrainer

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

IDS = [[5, 80, 7, 33, 12, 250, 3]]


def quick(text_file: Path, output_dir: Path, **settings: object) -> TrainingOptions:
    defaults = dict(block_size=16, batch_size=4, max_steps=4, save_steps=2, learning_rate=1e-2, logging_steps=1)
    return TrainingOptions(train_file=str(text_file), output_dir=str(output_dir), **{**defaults, **settings})


def logits(directory: Path) -> torch.Tensor:
    return new_context(load(str(directory)).model, 64).start(IDS)[0]


def by_peft(adapter: Path, base: Path) -> torch.Tensor:
    model = PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(base, local_files_only=True), adapter).eval()
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits[0, -1]


@pytest.mark.parametrize(
    "settings",
    [{"lora_targets": ("c_attn", "c_fc")}, {"lora_targets": ("all-linear",), "use_dora": True, "use_rslora": True}],
    ids=["lora", "dora"],
)
def test_adapter_is_trained_saved_and_merged(text_file: Path, model_dir: Path, tmp_path: Path, settings: dict) -> None:
    """The directory, the adapter below it and the checkpoint are the same model, for our engine and for peft."""
    out = tmp_path / "out"
    finetune(quick(text_file, out, lora=True, keep="last", **settings), str(model_dir))
    expected = by_peft(out / "adapter", model_dir)
    for directory in (out, out / "adapter", out / "checkpoint-4"):
        torch.testing.assert_close(logits(directory), expected, atol=1e-4, rtol=0)
    assert (logits(model_dir) - expected).abs().max() > 1e-3
    theirs = GPT2LMHeadModel.from_pretrained(out, local_files_only=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(torch.tensor(IDS)).logits[0, -1], expected, atol=1e-4, rtol=0)
    assert not (out / "checkpoint-4" / "model.safetensors").exists()


def test_adapter_is_not_merged_with_no_merge(text_file: Path, model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    finetune(quick(text_file, out, lora=True, keep="last", no_merge=True), str(model_dir))
    assert not (out / "model.safetensors").exists()
    torch.testing.assert_close(logits(out), by_peft(out, model_dir), atol=1e-4, rtol=0)


def test_resume_merges_an_unmerged_adapter(text_file: Path, model_dir: Path, tmp_path: Path) -> None:
    """As after a kill between the last checkpoint and the merge."""
    out = tmp_path / "out"
    finetune(quick(text_file, out, lora=True, no_merge=True), str(model_dir))
    expected = logits(out)
    finetune(quick(text_file, out, lora=True, resume="newest"), str(model_dir))
    assert (out / "model.safetensors").exists()
    torch.testing.assert_close(logits(out), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits(out / "adapter"), expected, atol=1e-4, rtol=0)


def test_resume_with_no_merge_removes_the_old_adapter(text_file: Path, model_dir: Path, tmp_path: Path) -> None:
    """The adapter below a merged model would belong to an earlier step."""
    out = tmp_path / "out"
    finetune(quick(text_file, out, lora=True, max_steps=2, keep="last"), str(model_dir))
    assert (out / "adapter").is_dir()
    finetune(quick(text_file, out, lora=True, keep="last", no_merge=True, resume="newest"), str(model_dir))
    assert not (out / "adapter").exists()
    torch.testing.assert_close(logits(out), by_peft(out / "checkpoint-4", model_dir), atol=1e-4, rtol=0)


def test_samples_do_not_affect_adapter_training(text_file: Path, model_dir: Path, tmp_path: Path) -> None:
    """Dropout and samples draw from the same random state."""
    for name, settings in {"plain": {}, "sampled": {"sample_steps": 1, "num_samples": 2}}.items():
        options = quick(text_file, tmp_path / name, lora=True, lora_dropout=0.3, dropout=0.2, **settings)
        finetune(options, str(model_dir))
    assert (tmp_path / "sampled" / "samples.md").read_text().count("## Step") == 4
    plain, sampled = (tmp_path / name / "checkpoint-4" / "adapter_model.safetensors" for name in ("plain", "sampled"))
    assert plain.read_bytes() == sampled.read_bytes()


def test_resumed_adapter_reaches_the_same_weights(text_file: Path, model_dir: Path, tmp_path: Path) -> None:
    def run(name: str, **settings: object) -> bytes:
        finetune(quick(text_file, tmp_path / name, lora=True, lora_dropout=0.1, **settings), str(model_dir))
        return (tmp_path / name / "checkpoint-4" / "adapter_model.safetensors").read_bytes()

    straight = run("straight", lr_scheduler_type="constant")
    finetune(
        quick(text_file, tmp_path / "b", lora=True, lora_dropout=0.1, lr_scheduler_type="constant", max_steps=2),
        str(model_dir),
    )
    assert run("b", lr_scheduler_type="constant", resume="newest") == straight


def test_frozen_layers_do_not_change(text_file: Path, model_dir: Path, tmp_path: Path) -> None:
    finetune(quick(text_file, tmp_path / "out", freeze_layers=1), str(model_dir))
    before, after = (load_file(path / "model.safetensors") for path in (model_dir, tmp_path / "out"))
    changed = {name.removeprefix("transformer.") for name in before if not torch.equal(before[name], after[name])}
    assert {name.partition(".")[0] for name in changed} == {"h", "ln_f"}
    assert {name.split(".")[1] for name in changed if name.startswith("h.")} == {"1"}


@pytest.mark.parametrize("settings", [{"freeze_layers": 3}, {"lora": True, "freeze_layers": 1}], ids=str)
def test_invalid_freeze_layers_are_refused(text_file: Path, model_dir: Path, tmp_path: Path, settings: dict) -> None:
    with pytest.raises(UserError):
        finetune(quick(text_file, tmp_path / "out", **settings), str(model_dir))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("optim", ["adafactor", "sgd", "muon"])
def test_other_optimizers_train(text_file: Path, model_dir: Path, tmp_path: Path, optim: str) -> None:
    options = quick(text_file, tmp_path / "out", optim=optim, validation_file=str(text_file), max_steps=10)
    outcome = finetune(options, str(model_dir))
    assert outcome is not None
    assert outcome.loss_after < outcome.loss_before


# ---- out of memory ----


# How CUDA, cuBLAS, Metal and torch's CPU allocator report it.
OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB, max allowed: 9.07 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory"),
]


@pytest.fixture
def small_device(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A device with memory for batches of two."""
    train = LanguageTrainer.training_step
    error = getattr(request, "param", OUT_OF_MEMORY[0])

    def limited(self: LanguageTrainer, model: object, inputs: dict, *rest: object) -> object:
        if len(inputs["input_ids"]) > 2:
            raise error
        return train(self, model, inputs, *rest)

    monkeypatch.setattr(LanguageTrainer, "training_step", limited)


def test_out_of_memory_names_sizes_and_flags(
    text_file: Path, model_dir: Path, tmp_path: Path, small_device: None
) -> None:
    with pytest.raises(RunError, match=r"a step takes about .*, the device has .*; most .*--batch_size 1"):
        finetune(quick(text_file, tmp_path / "out"), str(model_dir))


@pytest.mark.parametrize("small_device", OUT_OF_MEMORY, indirect=True, ids=["cuda", "cublas", "mps", "cpu"])
def test_auto_batch_size_knows_every_library(
    text_file: Path, model_dir: Path, tmp_path: Path, small_device: None, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune(quick(text_file, tmp_path / "out", auto_batch_size=True, max_steps=1), str(model_dir))
    assert "continuing with --batch_size 2" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["placing the model", "evaluation", "dry run"])
def test_out_of_memory_is_explained_wherever_it_happens(
    text_file: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OUT_OF_MEMORY[1]

    owner, name = {
        "placing the model": (LanguageTrainer, "_move_model_to_device"),
        "evaluation": (LanguageTrainer, "_loss_and_tokens"),
        "dry run": (plan, "measure_step_times"),
    }[place]
    monkeypatch.setattr(owner, name, full)
    monkeypatch.setattr(LanguageTrainer, "place_model_on_device", True, raising=False)
    options = quick(text_file, tmp_path / "out", dry_run=place == "dry run")
    with pytest.raises(RunError, match=r"a step takes about .*; most effective first"):
        finetune(options, str(model_dir))


def test_auto_batch_size_equals_a_run_with_that_size(
    text_file: Path, model_dir: Path, tmp_path: Path, small_device: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bit for bit like a run with those batches from the start; and a resumed run needs no other flags."""
    finetune(quick(text_file, tmp_path / "auto", batch_size=4, auto_batch_size=True), str(model_dir))
    assert "continuing with --batch_size 2 --gradient_accumulation_steps 2" in capsys.readouterr().err
    finetune(quick(text_file, tmp_path / "set", batch_size=2, gradient_accumulation_steps=2), str(model_dir))
    name = "checkpoint-4/model.safetensors"
    assert (tmp_path / "auto" / name).read_bytes() == (tmp_path / "set" / name).read_bytes()
    options = quick(text_file, tmp_path / "auto", batch_size=4, auto_batch_size=True, max_steps=6, resume="newest")
    outcome = finetune(options, str(model_dir))
    assert outcome is not None
    assert outcome.steps == 6


def test_out_of_memory_keeps_the_named_checkpoint(
    text_file: Path, model_dir: Path, tmp_path: Path, small_device: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Memory runs out in the first step after the resume: the retry starts from the named checkpoint too."""
    options = quick(text_file, tmp_path / "out", auto_batch_size=True, save_total_limit=0)
    finetune(options, str(model_dir))
    named = str(tmp_path / "out" / "checkpoint-2")
    capsys.readouterr()
    finetune(replace(options, max_steps=6, resume=named, logging_steps=1), str(model_dir))
    told = capsys.readouterr().err
    assert "continuing with --batch_size 2" in told
    assert "step 3/6" in told


@pytest.mark.parametrize(
    ("size", "accumulation", "expected"), [(4, 1, (2, 2)), (6, 1, (3, 2)), (5, 1, (1, 5)), (3, 2, (1, 6)), (1, 8, None)]
)
def test_halved_batches_keep_the_blocks_of_a_step(
    size: int, accumulation: int, expected: tuple[int, int] | None
) -> None:
    found = smaller_batches(TrainingOptions(batch_size=size, gradient_accumulation_steps=accumulation))
    assert (found and (found.batch_size, found.gradient_accumulation_steps)) == expected


# ---- dry runs ----


def test_dry_run_prints_the_plan_and_writes_nothing(
    text_file: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--train_file", text_file, "--model_name", model_dir, "--output_dir", out, "--block_size", 16]
    words += ["--dry_run", "--show_blocks", 1, "--device", "cpu"]
    assert finetune_gpt2.main(list(map(str, words))) == 0
    assert finetune_gpt2.main(["--output_dir", str(tmp_path), *map(str, words[:4]), *map(str, words[6:])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("block 0: 16 tokens, 15 carry loss")
    assert [line.partition(":")[0] for line in lines[-7:]] == [
        "examples", "tokens", "blocks", "steps", "checkpoints", "memory", "time",
    ]  # fmt: skip
    assert not out.exists()


def test_missing_device_is_refused(text_file: Path, model_dir: Path, tmp_path: Path) -> None:
    for device in ("cuda:1", "mps") if not torch.backends.mps.is_available() else ("cuda:1",):
        with pytest.raises(UserError) as caught:
            finetune(quick(text_file, tmp_path / "out"), str(model_dir), device)
        assert caught.value.option == "device"


def test_prompts_and_completions_are_trained(tmp_path: Path, model_dir: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [{"prompt": f"Owl {n}:", "completion": " flew away."} for n in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = quick(path, tmp_path / "out", no_cross_examples=True, validation_split=0.25, max_steps=12)
    outcome = finetune(options, str(model_dir))
    assert outcome is not None
    assert outcome.loss_after < outcome.loss_before - 1
