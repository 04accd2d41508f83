"""Read what generation needs from a training run's output directory: its checkpoints and their validation losses."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path

from gpt2tg.checkpoint.file_names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, WEIGHT_FILES
from gpt2tg.checkpoint.find import find_directory
from gpt2tg.errors import UserError
from gpt2tg.io.json_files import read_object
from gpt2tg.io.tables import aligned

# Sizes and SHA-256 of the files of a checkpoint. Written last, so a checkpoint without it is incomplete.
MANIFEST = "manifest.json"

# A `checkpoint-N` folder with any of these files is ours, complete or not.
CHECKPOINT_FILES = (
    *(MANIFEST, "config.json", ADAPTER_CONFIG, ADAPTER_WEIGHTS),
    *WEIGHT_FILES,
    *("trainer_state.json", "optimizer.pt"),
)

# The losses of a run, one line per logged step, in its output directory.
LOG_FILE = "training_log.csv"


@dataclass(frozen=True)
class Saved:
    """A checkpoint of a run."""

    path: Path
    step: int
    order: int | None
    """Counts the checkpoints of the run in the order of saving, which is not that of the steps if the run was resumed
    from an earlier step. None if the checkpoint has no manifest."""
    validation_loss: float | None
    """None if it was not measured at this step."""


def saved_checkpoints(directory: Path) -> list[Saved]:
    """Return the `checkpoint-N` folders of an output directory in the order of saving; those without order last."""
    losses = _validation_losses(directory)
    found = [
        Saved(path, int(match[1]), _order(path), losses.get(int(match[1])))
        for path in directory.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir() and not _is_foreign(path)
    ]
    return sorted(found, key=lambda saved: (saved.order is None, saved.order or 0, saved.step))


def _is_foreign(folder: Path) -> bool:
    """Whether a folder holds only files that are not ours. They remain when a checkpoint is removed."""
    names = {path.name for path in folder.iterdir()}
    return bool(names) and names.isdisjoint(CHECKPOINT_FILES)


def best_checkpoint(checkpoints: list[Saved]) -> Saved | None:
    """Return the checkpoint with the lowest validation loss, or None if none was measured."""
    measured = [
        (saved.validation_loss, saved.step, saved) for saved in checkpoints if saved.validation_loss is not None
    ]
    return min(measured)[2] if measured else None


def choose_checkpoint(name: str, which: str) -> Path:
    """Return the directory of one checkpoint of a run.

    Args:
        name: the output directory of the run.
        which: `best`, `last` or a step.

    Raises:
        UserError: there is no such checkpoint; the message lists those that exist.
    """
    directory = Path(name).expanduser()
    checkpoints = saved_checkpoints(directory) if directory.is_dir() else []
    if not checkpoints:
        raise UserError(
            f"{which}: {name} holds no checkpoint-N: leave the flag out, or give another directory", "checkpoint"
        )
    if which == "last":
        return checkpoints[-1].path
    if which == "best":
        if best := best_checkpoint(checkpoints):
            return best.path
        raise UserError(f"best: no checkpoint in {name} was measured: use last or the number of a step", "checkpoint")
    for saved in checkpoints:
        if saved.step == int(which):
            return saved.path
    steps = ", ".join(str(saved.step) for saved in checkpoints)
    raise UserError(f"{which}: {name} holds no checkpoint of that step, but of {steps}", "checkpoint")


def listing(name: str, option: str) -> str:
    """Return a table of the checkpoints of a run: step, validation loss, and which is the best and the last.

    Raises:
        UserError: the directory holds neither a checkpoint nor a model.
    """
    directory = Path(name).expanduser()
    checkpoints = saved_checkpoints(directory) if directory.is_dir() else []
    if not checkpoints:
        find_directory(name, option)
        return f"{name} holds a model and no checkpoint-N"
    best, model_step = best_checkpoint(checkpoints), step_of_model(directory)
    rows = [["    step", "validation loss", ""]]
    for saved in checkpoints:
        loss = "-" if saved.validation_loss is None else f"{saved.validation_loss:.4f}"
        notes = ["best"] * (saved is best) + ["last"] * (saved is checkpoints[-1])
        notes += ["in the directory itself"] * (saved.step == model_step)
        rows.append([str(saved.step), loss, ", ".join(notes)])
    return "\n".join(aligned(rows, left={2}))


def step_of_model(directory: Path) -> int | None:
    """Return the step of the model in the output directory itself, or None if run.json does not tell."""
    try:
        return int(read_object(directory / "run.json")["model"]["step"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None


def _order(checkpoint: Path) -> int | None:
    try:
        return int(read_object(checkpoint / MANIFEST)["order"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None


def _validation_losses(directory: Path) -> dict[int, float]:
    """Return the finite validation losses by step. A log that cannot be read gives none."""
    found = {}
    try:
        with (directory / LOG_FILE).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row.get("validation_loss"):
                    found[int(row["step"] or 0)] = float(row["validation_loss"] or 0)
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        pass
    return {step: loss for step, loss in found.items() if math.isfinite(loss)}
