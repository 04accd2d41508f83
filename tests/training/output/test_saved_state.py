"""Checkpoints that are as they were sealed, and none that a run of ours can go on from: named, passed over, not run."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt2tg.checkpoint.runs import saved_checkpoints, step_of_model
from gpt2tg.errors import RunError, UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.training.finetune import finetune
from gpt2tg.training.output.durable import read_manifest, seal
from gpt2tg.training.output.reservation import check_output
from gpt2tg.training.output.resumable import find_resumable

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def whole(text_file: Path, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingOptions:
    """A run of 4 steps, saved after 2 and 4; tests copy it."""
    options = TrainingOptions(
        train_file=str(text_file), output_dir=str(tmp_path_factory.mktemp("whole") / "out"), block_size=16,
        batch_size=2, save_steps=2, max_steps=4, validation_split=0.3, keep="last",
    )  # fmt: skip
    finetune(options, str(model_dir))
    return options


@pytest.fixture
def run(whole: TrainingOptions, tmp_path: Path) -> TrainingOptions:
    shutil.copytree(whole.output_dir, tmp_path / "out")
    return replace(whole, output_dir=str(tmp_path / "out"), resume="newest")


def sealed(checkpoint: Path, change: Change) -> None:
    """Change a checkpoint, and seal it again."""
    facts = {name: value for name, value in read_manifest(checkpoint).items() if name != "files"}
    change(checkpoint)
    seal(checkpoint, facts)


def in_json(name: str, change: Callable[[dict[str, Any]], object]) -> Change:
    def changed(checkpoint: Path) -> None:
        content = json.loads((checkpoint / name).read_text())
        change(content)
        (checkpoint / name).write_text(json.dumps(content))

    return changed


def as_bytes(name: str, content: bytes) -> Change:
    return lambda checkpoint: (checkpoint / name).write_bytes(content) and None


def in_torch(name: str, change: Callable[[Any], Any]) -> Change:
    def changed(checkpoint: Path) -> None:
        torch.save(change(torch.load(checkpoint / name, weights_only=False)), checkpoint / name)

    return changed


def in_weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    def changed(checkpoint: Path) -> None:
        file = checkpoint / "model.safetensors"
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
        save_file(change(tensors), file, metadata={"format": "pt"})

    return changed


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
NO_OBJECTS = {"list": b"[]", "text": b'"step"', "number": b"4", "nested": b"[" * 100_000, "empty": b""}
NO_OBJECTS |= {"utf-16": "{}".encode("utf-16"), "latin-1": b'{"a": "\xe9"}', "pointer": POINTER}

MANIFESTS = {
    "without its run": lambda content: content.pop("run"),
    "without its step": lambda content: content.pop("step"),
    "of another step": lambda content: content.update(step=2),
    "order is a word": lambda content: content.update(order="last"),
    "run is a list": lambda content: content.update(run=[]),
    "run without options": lambda content: content["run"].pop("options"),
    "run without data": lambda content: content["run"].pop("data"),
    "shape of words": lambda content: content["run"].update(shape={"n_embd": "wide"}),
    "negative shape": lambda content: content["run"]["shape"].update(n_embd=-32),
    "trainer is a number": lambda content: content["run"]["options"].update(trainer=1),
    "files is a list": lambda content: content.update(files=["model.safetensors"]),
    "size is endless": lambda content: content["files"]["config.json"].update(size=math.inf),
}

STATES = {
    "without our part": lambda state: state["stateful_callbacks"].pop("gpt2tg"),
    "negative step": lambda state: state.update(global_step=-5),
    "absurd step": lambda state: state.update(global_step=10**30),
    "step is a word": lambda state: state.update(global_step="4"),
    "endless epoch": lambda state: state.update(epoch=math.inf),
    "log is a word": lambda state: state.update(log_history="long"),
    "log of numbers": lambda state: state.update(log_history=[1, 2]),
    "log from later": lambda state: state["log_history"].append({"step": 9, "loss": 1.0, "epoch": 1.0}),
    "loss is a word": lambda state: state["log_history"].append({"step": 4, "loss": "low", "epoch": 1.0}),
    "validation loss is none": lambda state: state["log_history"].append({"step": 4, "eval_loss": math.nan}),
    "no sums": lambda state: state["stateful_callbacks"]["gpt2tg"].update(loss_sums=[]),
    "time goes back": lambda state: state["stateful_callbacks"]["gpt2tg"].update(seconds=-1),
    "unknown field": lambda state: state.update(mood="good"),
}


class Foreign:
    """Creates a file if an unsafe reader unpickles it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.open, (str(self.file), os.O_CREAT)


TENSORS = {
    "optimizer is a list": in_torch("optimizer.pt", lambda _: [1, 2, 3]),
    "optimizer without groups": in_torch("optimizer.pt", lambda content: {"state": content["state"]}),
    "optimizer is text": as_bytes("optimizer.pt", b"hello"),
    "optimizer is a pointer": as_bytes("optimizer.pt", POINTER),
    "scheduler of words": in_torch("scheduler.pt", lambda content: {**content, "last_epoch": "late"}),
    "scheduler far ahead": in_torch("scheduler.pt", lambda content: {**content, "last_epoch": 10**9}),
    "scheduler is empty": in_torch("scheduler.pt", lambda _: {}),
    "random state is short": in_torch("rng_state.pth", lambda content: {**content, "cpu": content["cpu"][:100]}),
    "random state of words": in_torch("rng_state.pth", lambda content: {**content, "python": ("a", "b", "c")}),
    "random state lacks numpy": in_torch("rng_state.pth", lambda content: {"python": content["python"]}),
    "weights are not finite": in_weights(lambda found: {**found, "transformer.wte.weight": found["transformer.wte.weight"] * math.nan}),  # noqa: E501
    "weights of other names": in_weights(lambda found: {f"x.{name}": tensor for name, tensor in found.items()}),
    "weights of another shape": in_weights(lambda found: {name: tensor[:-1].clone() for name, tensor in found.items()}),
}  # fmt: skip


def assert_skipped(run: TrainingOptions, told: str, file: str) -> None:
    """Check that the log names the newest checkpoint and its faulty file, and that both checkpoints still exist."""
    (line,) = [line for line in told.splitlines() if "damaged and skipped" in line]
    assert "checkpoint-4 is damaged and skipped" in line
    assert file in line
    assert {saved.step for saved in saved_checkpoints(Path(run.output_dir))} == {2, 4}


@pytest.mark.parametrize("content", NO_OBJECTS.values(), ids=NO_OBJECTS)
@pytest.mark.parametrize("name", ["manifest.json", "trainer_state.json"])
def test_file_without_a_json_object_is_skipped(
    run: TrainingOptions, name: str, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(run.output_dir)
    if name == "manifest.json":
        (out / "checkpoint-4" / name).write_bytes(content)
    else:
        sealed(out / "checkpoint-4", as_bytes(name, content))
    assert find_resumable(out, "newest").name == "checkpoint-2"
    assert_skipped(run, capsys.readouterr().err, name)


@pytest.mark.parametrize("change", MANIFESTS.values(), ids=MANIFESTS)
def test_incomplete_manifest_is_skipped(run: TrainingOptions, change: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(run.output_dir)
    in_json("manifest.json", change)(out / "checkpoint-4")
    assert find_resumable(out, "newest").name == "checkpoint-2"
    assert_skipped(run, capsys.readouterr().err, "config.json" if "size" in str(change) else "")


@pytest.mark.parametrize("change", STATES.values(), ids=STATES)
def test_invalid_trainer_state_is_skipped(
    run: TrainingOptions, change: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(run.output_dir)
    sealed(out / "checkpoint-4", in_json("trainer_state.json", change))
    assert find_resumable(out, "newest").name == "checkpoint-2"
    assert_skipped(run, capsys.readouterr().err, "trainer_state.json")


@pytest.mark.parametrize("change", TENSORS.values(), ids=TENSORS)
def test_invalid_tensor_files_are_skipped(
    run: TrainingOptions, change: Change, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(run.output_dir)
    sealed(out / "checkpoint-4", change)
    assert find_resumable(out, "newest").name == "checkpoint-2"
    assert_skipped(run, capsys.readouterr().err, "cannot be used: ")


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_pickles_are_never_executed(
    run: TrainingOptions, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trap, out = tmp_path / "trap", Path(run.output_dir)
    for save in (torch.save, lambda content, file: file.write_bytes(pickle.dumps(content))):
        sealed(out / "checkpoint-4", lambda checkpoint, save=save: save(Foreign(trap), checkpoint / name))
        assert find_resumable(out, "newest").name == "checkpoint-2"
        assert_skipped(run, capsys.readouterr().err, f"{name} cannot be used: ")
    assert not trap.exists()
    with pytest.raises(RunError, match=rf"checkpoint-4 is damaged: {name} cannot be used"):
        find_resumable(out, str(out / "checkpoint-4"))


def moments_of_another_model(content: dict[str, Any]) -> dict[str, Any]:
    for state in content["state"].values():
        state["exp_avg"] = torch.zeros(7, 5)
    return content


def no_moments(content: dict[str, Any]) -> dict[str, Any]:
    return {**content, "state": {}}


def fewer_weights(content: dict[str, Any]) -> dict[str, Any]:
    content["param_groups"][0]["params"].pop()
    return content


def test_moments_of_another_model_are_skipped(
    run: TrainingOptions, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only loading into the model reveals this: the run resumes from the one before, and fails if none is left."""
    out = Path(run.output_dir)
    sealed(out / "checkpoint-4", in_torch("optimizer.pt", moments_of_another_model))
    assert finetune(replace(run, max_steps=6), str(model_dir)).steps == 6
    told = capsys.readouterr().err
    assert "checkpoint-4 is damaged: the state of its optimizer cannot be used: it has a moment of shape (7, 5" in told
    assert "resuming at step 2 of 6" in told
    first, *others, last = (saved.path for saved in saved_checkpoints(out))
    sealed(first, in_torch("optimizer.pt", no_moments))
    sealed(last, in_torch("optimizer.pt", fewer_weights))
    for path in others:
        shutil.rmtree(path)
    before = {path: path.stat().st_mtime_ns for path in out.glob("checkpoint-*/*")}
    with pytest.raises(RunError, match=r"all 2 checkpoints in .* are damaged; nothing was changed"):
        finetune(replace(run, max_steps=8), str(model_dir))
    assert {path: path.stat().st_mtime_ns for path in out.glob("checkpoint-*/*")} == before


def test_adapter_with_other_names_is_refused(whole: TrainingOptions, model_dir: Path, tmp_path: Path) -> None:
    """peft ignores tensors that an adapter lacks, and would continue from new ones."""
    options = replace(whole, output_dir=str(tmp_path), lora=True, max_steps=2)
    finetune(options, str(model_dir))

    def renamed(checkpoint: Path) -> None:
        file = checkpoint / "adapter_model.safetensors"
        save_file({name.replace(".h.0.", ".h.7."): tensor for name, tensor in load_file(file).items()}, file)

    sealed(tmp_path / "checkpoint-2", renamed)
    with pytest.raises(RunError, match="damaged; nothing was changed"):
        finetune(replace(options, resume="newest", max_steps=3), str(model_dir))


RECORDS = {**NO_OBJECTS, "step is endless": b'{"model": {"step": Infinity}, "versions": "gpt2tg 1"}'}


@pytest.mark.parametrize("content", RECORDS.values(), ids=RECORDS)
def test_foreign_run_json_is_not_ours(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    assert step_of_model(tmp_path) is None
    with pytest.raises(UserError, match=r"it has no run\.json of ours"):
        check_output(tmp_path, resumes=False, overwrite=True)
