"""--try: a folder for each combination, early pruning, the best model published, resuming."""

from __future__ import annotations

import csv
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback, TrainerControl, TrainerState

from gpt2tg.errors import Interrupted, UserError
from gpt2tg.generation.generator import load
from gpt2tg.options import TrainingOptions, decoding_options
from gpt2tg.training import search as module
from gpt2tg.training.finetune import Outcome
from gpt2tg.training.search import search
from gpt2tg.training.trials import Trial, read_evaluations

Capture = pytest.CaptureFixture[str]


def options(text_file: Path, output_dir: Path, *tries: str, **settings: object) -> TrainingOptions:
    """Return the options of a search with short runs."""
    quick = dict(block_size=16, batch_size=2, max_steps=4, eval_steps=2, logging_steps=4, validation_split=0.3)
    return TrainingOptions(
        train_file=str(text_file), output_dir=str(output_dir), try_=tries, **{**quick, **settings}
    )  # fmt: skip


def table(directory: Path) -> dict[str, dict[str, str]]:
    """Return the rows of tries.csv by learning rate."""
    with (directory / "tries.csv").open(encoding="utf-8", newline="") as file:
        return {row["learning_rate"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def searched(
    text_file: Path, model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainingOptions, Path]:
    """A search with two good settings, a hopeless one, and one that diverges."""
    directory = tmp_path_factory.mktemp("search") / "out"
    given = options(text_file, directory, "learning_rate=1e-3,2e-3,1e-9,1e30")
    search(given, str(model_dir))
    return given, directory


def test_table_lists_the_result_of_each_trial(searched: tuple[TrainingOptions, Path]) -> None:
    _, directory = searched
    rows = table(directory)
    assert {rate: row["state"] for rate, row in rows.items()} == {
        "0.001": "finished", "0.002": "finished", "1e-09": "pruned", "1e+30": "diverged",
    }  # fmt: skip
    assert (rows["0.001"]["of_steps"], rows["1e-09"]["of_steps"]) == ("4", "2")
    losses = [float(row["validation_loss"]) for row in rows.values() if row["state"] == "finished"]
    assert losses == sorted(losses)
    assert (directory / "tries.png").read_bytes().startswith(b"\x89PNG")


def test_the_directory_holds_the_best_model(searched: tuple[TrainingOptions, Path]) -> None:
    _, directory = searched
    best = next(iter(table(directory)))
    winner = directory / "tries" / f"learning_rate={best}"
    assert (directory / "model.safetensors").read_bytes() == (winner / "model.safetensors").read_bytes()
    assert json.loads((directory / "run.json").read_text())["options"]["learning_rate"] == float(best)
    assert load(str(directory)).generate("Two bells", decoding_options({"decoding": "greedy", "max_new_tokens": 2}))


def test_trial_equals_an_ordinary_run(searched: tuple[TrainingOptions, Path], model_dir: Path, tmp_path: Path) -> None:
    given, directory = searched
    alone = replace(given, try_=(), learning_rate=2e-3, output_dir=str(tmp_path / "alone"))
    module.finetune(alone, str(model_dir))
    there = directory / "tries" / "learning_rate=0.002" / "checkpoint-4" / "model.safetensors"
    assert (tmp_path / "alone" / "checkpoint-4" / "model.safetensors").read_bytes() == there.read_bytes()


def test_resuming_a_finished_search_trains_nothing(
    searched: tuple[TrainingOptions, Path], model_dir: Path, capsys: Capture
) -> None:
    given, directory = searched
    before = (directory / "tries.csv").read_bytes()
    search(replace(given, resume="newest"), str(model_dir))
    said = capsys.readouterr().err
    assert said.count("nothing to do") == 2
    assert "before training" not in said
    assert (directory / "tries.csv").read_bytes() == before


def test_interrupted_search_resumes(
    text_file: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    given = options(text_file, tmp_path / "out", "learning_rate=1e-3,2e-3,1e-9")
    finetune, begun = module.finetune, []

    class Terminate(TrainerCallback):
        def on_step_end(self, args: object, state: TrainerState, control: object, **_: object) -> None:
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    def interrupted_in_the_second(one: TrainingOptions, name: str, device: str, callbacks: list) -> object:
        begun.append(one.output_dir)
        return finetune(one, name, device, [*callbacks, Terminate()] if len(begun) == 2 else callbacks)

    with monkeypatch.context() as patch:
        patch.setattr(module, "finetune", interrupted_in_the_second)
        with pytest.raises(Interrupted) as stop:
            search(given, str(model_dir))
    assert stop.value.is_saved
    with pytest.raises(UserError, match="is not empty"):
        search(given, str(model_dir))
    capsys.readouterr()
    search(replace(given, resume="newest"), str(model_dir))
    assert "resuming at step 2 of 4" in capsys.readouterr().err
    whole = replace(given, output_dir=str(tmp_path / "whole"))
    search(whole, str(model_dir))
    for folder in (tmp_path / "whole" / "tries").iterdir():
        assert read_evaluations(folder) == read_evaluations(tmp_path / "out" / "tries" / folder.name)
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (tmp_path / "out/model.safetensors").read_bytes()


def test_overwrite_deletes_only_files_of_the_search(text_file: Path, model_dir: Path, tmp_path: Path) -> None:
    search(options(text_file, tmp_path, "learning_rate=1e-3,2e-3"), str(model_dir))
    (tmp_path / "tries" / "learning_rate=0.001" / "notes.txt").write_text("mine")
    search(options(text_file, tmp_path, "learning_rate=1e-4", overwrite=True), str(model_dir))
    folders = {path.name for path in (tmp_path / "tries").iterdir()}
    assert folders == {"learning_rate=0.001", "learning_rate=0.0001"}
    assert [path.name for path in (tmp_path / "tries" / "learning_rate=0.001").iterdir()] == ["notes.txt"]


def stubbed(curves: dict[str, list[float]]) -> Any:
    """Return a stand-in for `finetune` that evaluates once an epoch, with the losses of a curve."""

    def run(one: TrainingOptions, name: str, device: str, callbacks: list) -> Outcome:
        path = Path(one.output_dir)
        path.mkdir(parents=True, exist_ok=True)
        losses = curves[path.name]
        state, control = TrainerState(max_steps=len(losses)), TrainerControl()
        for step, loss in enumerate(losses, start=1):
            state.global_step = step
            state.log_history.append({"step": step, "epoch": float(step), "eval_loss": loss})
            callbacks[0].on_evaluate(None, state, control)
            if control.should_training_stop:
                break
        rows = [f"{entry['epoch']},{entry['eval_loss']}" for entry in state.log_history]
        (path / "training_log.csv").write_text("\n".join(["epoch,validation_loss", *rows]))
        (path / "run.json").write_text("{}")
        return Outcome(path, state.global_step, state.global_step, 1.0, 9.0, state.log_history[-1]["eval_loss"])

    return run


@pytest.mark.parametrize(
    ("tries", "settings", "curves", "pruned"),
    [
        # After one epoch, a run of one epoch has decayed its learning rate, and a run of four has not.
        (["epochs=1,2,4"], {}, {"epochs=1.0": [4.04], "epochs=2.0": [4.05, 3.97], "epochs=4.0": [4.06, 4.0, 3.9, 3.8]},
         []),
        (["max_steps=4,5,9"], {}, {f"max_steps={steps}": [4 + steps, 3.0] for steps in (4, 5, 9)}, []),
        (["epochs=1,2,4"], {"lr_scheduler_type": "constant"},
         {"epochs=1.0": [4.04], "epochs=2.0": [4.05, 3.97], "epochs=4.0": [4.06, 4.0]}, ["epochs=4.0"]),
        (["lr_scheduler_type=linear,cosine,constant"], {}, {f"lr_scheduler_type={name}": [loss, 3.0] for name, loss in
         (("linear", 4.0), ("cosine", 4.1), ("constant", 4.2))}, []),
        (["block_size=16,17,32"], {}, {f"block_size={size}": [4 + size, 3.0] for size in (16, 17, 32)}, []),
        (["batch_size=1,2,4"], {"max_steps": 40}, {f"batch_size={size}": [4 + size, 3.0] for size in (1, 2, 4)}, []),
        (["batch_size=1,2,4"], {}, {f"batch_size={size}": [4 + size, 3.0] for size in (1, 2, 4)}, ["batch_size=4"]),
        (["warmup_steps=0,1,30"], {}, {f"warmup_steps={steps}": [4 + steps, 3.0] for steps in (0, 1, 30)}, []),
        (["weight_decay=0,1,3"], {}, {f"weight_decay={x}.0": [4.0 + x, 3.0] for x in (0, 1, 3)}, ["weight_decay=3.0"]),
    ],
)  # fmt: skip
def test_pruning_compares_trials_of_one_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tries: list[str], settings: dict, curves: dict, pruned: list[str]
) -> None:
    monkeypatch.setattr(module, "finetune", stubbed(curves))
    monkeypatch.setattr(module, "draw_tries", lambda *rest: None)
    search(TrainingOptions(train_file="a.txt", output_dir=str(tmp_path / "out"), try_=tuple(tries), **settings))
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    found = {Trial(**entry).folder: entry["state"] for entry in record["tries"]}
    assert found.keys() == curves.keys()
    assert [folder for folder, state in found.items() if state == "pruned"] == pruned


def test_trials_are_recognised_in_any_recorded_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curves = {f"weight_decay={x}.0,learning_rate=0.001": [4.0 + x, 3.0] for x in (0, 1, 3)}
    run, begun = stubbed(curves), []

    def counted(one: TrainingOptions, *rest: Any) -> Outcome:
        begun.append(one.weight_decay)
        return run(one, *rest)

    monkeypatch.setattr(module, "finetune", counted)
    monkeypatch.setattr(module, "draw_tries", lambda *rest: None)
    given = TrainingOptions(
        train_file="a.txt", output_dir=str(tmp_path), try_=("weight_decay=0,1,3", "learning_rate=1e-3")
    )
    search(given)
    search(replace(given, resume="newest"))
    assert begun == [0, 1, 3, 0, 1]  # the last was pruned


@pytest.mark.parametrize(
    "content",
    ["[]", '{"tries": 5}', '{"tries": [5]}', '{"tries": [{"settings": 5}]}', "[" * 100_000,
     '{"tries": [{"settings": {}, "step": "x"}]}', '{"tries": [{"settings": {}, "state": "odd"}]}'],
)  # fmt: skip
def test_invalid_search_record_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match="found no search"):
        search(TrainingOptions(train_file="a.txt", output_dir=str(tmp_path), try_=("epochs=1,2",), resume="newest"))


def test_dry_run_prints_a_plan_for_each_trial(
    text_file: Path, model_dir: Path, tmp_path: Path, capsys: Capture
) -> None:
    given = options(text_file, tmp_path / "out", "batch_size=1,2", dry_run=True)
    assert search(given, str(model_dir)) is None
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "batch_size" in line] == ["batch_size=1:", "batch_size=2:"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("tries", "message"),
    [
        (("learning_rte=1",), "learning_rte cannot be tried: did you mean learning_rate?"),
        (("learning_rate",), "has no values: write it like"),
        (("learning_rate=x",), "x is not valid: give a number"),
        (("learning_rate=-1",), "-1.0 is out of range"),
        (("train_file=a,b",), "train_file cannot be tried"),
        (("n_layer=1,2",), "n_layer cannot be tried"),
    ],
)
def test_invalid_try_settings_are_refused_in_one_line(tries: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        TrainingOptions(train_file="a.txt", try_=tries)


def test_schedules_of_all_trials_are_checked_before_the_first(text_file: Path, model_dir: Path, tmp_path: Path) -> None:
    given = options(text_file, tmp_path / "out", "lr_scheduler_type=cosine,cosine_with_min_lr")
    with pytest.raises(UserError, match="cosine_with_min_lr needs --lr_scheduler_kwargs"):
        search(given, str(model_dir))
    assert not (tmp_path / "out").exists()


def test_search_without_validation_is_refused() -> None:
    with pytest.raises(UserError, match="needs a validation loss"):
        TrainingOptions(train_file="a.txt", try_=("epochs=1,2",), validation_split=0)


def test_resume_without_a_search_is_refused(text_file: Path, model_dir: Path, tmp_path: Path) -> None:
    module.finetune(replace(options(text_file, tmp_path), try_=()), str(model_dir))
    with pytest.raises(UserError, match="found no search"):
        search(options(text_file, tmp_path, "learning_rate=1e-3", resume="newest"), str(model_dir))
