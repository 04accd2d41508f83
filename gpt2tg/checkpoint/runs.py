"""What a training run left, as far as it matters to those who generate: its checkpoints, and how good each is."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path

from gpt2tg.checkpoint.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from gpt2tg.checkpoint.find import find_directory
from gpt2tg.checkpoint.hub import WEIGHT_FILES
from gpt2tg.errors import UserError
from gpt2tg.io.json_files import read_object

# Sizes and sha256 of the files of a checkpoint: written last, so that a checkpoint without it is not whole.
MANIFEST = "manifest.json"

# A folder with any of these was a checkpoint, whole or not.
SIGNS_OF_A_CHECKPOINT = (MANIFEST, "config.json", ADAPTER_CONFIG, ADAPTER_WEIGHTS, *WEIGHT_FILES)
SIGNS_OF_A_CHECKPOINT += ("trainer_state.json", "optimizer.pt")

# The losses of a run, step by step, in its output directory.
LOG_FILE = "training_log.csv"


@dataclass(frozen=True)
class Saved:
    """A checkpoint of a run.

    `order` counts the savings of a run, for one that goes back writes small steps late; None where no manifest tells.
    """

    path: Path
    step: int
    order: int | None
    validation_loss: float | None


def saved_checkpoints(directory: Path) -> list[Saved]:
    """The `checkpoint-N` folders of an output directory, in the order they were written; unknown ones last."""
    losses = _validation_losses(directory)
    found = [
        Saved(path, int(match[1]), _order(path), losses.get(int(match[1])))
        for path in directory.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir() and not _is_of_others(path)
    ]
    return sorted(found, key=lambda saved: (saved.order is None, saved.order or 0, saved.step))


def _is_of_others(folder: Path) -> bool:
    """Whether all that it holds are files of other people, as they are left where a checkpoint was removed."""
    names = {path.name for path in folder.iterdir()}
    return bool(names) and names.isdisjoint(SIGNS_OF_A_CHECKPOINT)


def best_of(checkpoints: list[Saved]) -> Saved | None:
    """The one of the lowest validation loss; None where none was measured."""
    measured = [
        (saved.validation_loss, saved.step, saved) for saved in checkpoints if saved.validation_loss is not None
    ]
    return min(measured)[2] if measured else None


def choose_checkpoint(name: str, which: str) -> Path:
    """The directory of one checkpoint of a run.

    Args:
        name: the output directory of the run.
        which: `best`, `last` or a step.

    Raises:
        UserError: there is no such checkpoint; the message says which there are.
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
        if best := best_of(checkpoints):
            return best.path
        raise UserError(f"best: no checkpoint in {name} was measured: use last or the number of a step", "checkpoint")
    for saved in checkpoints:
        if saved.step == int(which):
            return saved.path
    steps = ", ".join(str(saved.step) for saved in checkpoints)
    raise UserError(f"{which}: {name} holds no checkpoint of that step, but of {steps}", "checkpoint")


def listing(name: str, option: str) -> str:
    """The checkpoints of a run, a line each: step, validation loss, and which is the best.

    Raises:
        UserError: there is neither a checkpoint nor a model in the directory.
    """
    directory = Path(name).expanduser()
    checkpoints = saved_checkpoints(directory) if directory.is_dir() else []
    if not checkpoints:
        find_directory(name, option)
        return f"{name} holds a model and no checkpoint-N"
    best, top = best_of(checkpoints), step_of_model(directory)
    lines = ["    step  validation loss"]
    for saved in checkpoints:
        loss = "-" if saved.validation_loss is None else f"{saved.validation_loss:.4f}"
        notes = ["best"] * (saved is best) + ["last"] * (saved is checkpoints[-1])
        notes += ["in the directory itself"] * (saved.step == top)
        lines.append(f"{saved.step:8}  {loss:>15}  {', '.join(notes)}".rstrip())
    return "\n".join(lines)


def step_of_model(directory: Path) -> int | None:
    """The step at which the model in the output directory itself was saved."""
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
    """By step; what cannot be read was not measured."""
    found = {}
    try:
        with (directory / LOG_FILE).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row.get("validation_loss"):
                    found[int(row["step"] or 0)] = float(row["validation_loss"] or 0)
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        pass
    return {step: loss for step, loss in found.items() if math.isfinite(loss)}
