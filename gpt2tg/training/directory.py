"""The output directory of a training run: what is in it, and what may be taken out of it."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpt2tg.engine.checkpoints import numbered_checkpoints, read_shape, read_weights
from gpt2tg.engine.hub import CONFIG_FILES, TOKENIZER_FILES
from gpt2tg.errors import RunError, UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.training.callbacks import say

# Written first and read by nobody but us: a directory that holds it was made by a run of ours.
RUN_FILE = "run.json"

# What a run needs to go on, beside the model; the last of them is the last that the Trainer writes.
STATE_FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")

# All that a run leaves in its directory beside the checkpoint-N folders.
RUN_FILES = (RUN_FILE, "model.safetensors", *CONFIG_FILES, *TOKENIZER_FILES)


def check_output(directory: Path, resume: bool, overwrite: bool) -> Path | None:
    """Decide what a run may do with its directory, without touching it.

    Returns:
        The checkpoint to go on from, or None for a new run.

    Raises:
        UserError: the directory holds something and no flag says what to do, or there is nothing to resume.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file: give a directory", "output_dir")
    _require_writable(directory)
    if resume:
        return _newest_whole(directory)
    if not directory.is_dir() or not any(directory.iterdir()):
        return None
    if not overwrite:
        raise UserError(
            f"{directory} is not empty: choose another, or go on with --resume, or start over with --overwrite",
            "output_dir",
        )
    if not _is_ours(directory):
        raise UserError(
            f"would remove what a training run left in {directory}, but none did (it has no {RUN_FILE} of ours): "
            "choose another --output_dir",
            "overwrite",
        )
    return None


def _require_writable(directory: Path) -> None:
    nearest = next(path for path in (directory, *directory.resolve().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"{directory} cannot be made: {nearest} is no directory that can be written to", "output_dir")


def _is_ours(directory: Path) -> bool:
    try:
        run = json.loads((directory / RUN_FILE).read_text(encoding="utf-8"))
        return "gpt2tg" in run["versions"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _newest_whole(directory: Path) -> Path:
    """The newest checkpoint that a run can go on from; broken ones are named and passed over."""
    for checkpoint in reversed(numbered_checkpoints(directory) if directory.is_dir() else []):
        missing = [name for name in STATE_FILES if not (checkpoint / name).is_file()]
        try:
            if not missing:
                read_weights(checkpoint, read_shape(checkpoint))
                return checkpoint
            say(f"{checkpoint} is not whole and passed over: it lacks {missing[0]}")
        except UserError as error:
            say(f"{checkpoint} is broken and passed over: {error}")
    raise UserError(f"found no whole checkpoint-N in {directory}: start without --resume", "resume")


# Options that may differ when a run is resumed: they change neither the data nor a step already taken.
MAY_DIFFER = {"resume", "overwrite", "output_dir", "epochs", "max_steps", "save_steps", "save_total_limit"}
MAY_DIFFER |= {"logging_steps", "generate_samples", "prompt", "num_samples"}


def check_resumable(directory: Path, options: TrainingOptions, model_name: str | None) -> None:
    """Compare the flags with those the run was started with.

    Raises:
        UserError: names the first that differs, with both values.
    """
    try:
        before = json.loads((directory / RUN_FILE).read_text(encoding="utf-8"))
        settings = {**before["options"], "model_name": before["model_name"]}
    except (OSError, ValueError, KeyError, TypeError):
        return  # not started by us, or by a version that wrote something else: nothing to compare with
    now = json.loads(json.dumps({**asdict(options), "model_name": model_name}))
    for name, value in now.items():
        if name not in MAY_DIFFER and name in settings and settings[name] != value:
            raise UserError(
                f"cannot go on with --{name} {value}: the run was started with {settings[name]}; "
                "give the same flags, or start anew in another --output_dir",
                "resume",
            )


def make_readable(directory: Path) -> None:
    """Give the model's files the permissions of ordinary new files: weights are written for their owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    for name in RUN_FILES:
        if (directory / name).is_file():
            (directory / name).chmod(0o666 & ~umask)


def open_output(directory: Path, overwrite: bool) -> None:
    """Make the directory; with `overwrite`, take out what an earlier run wrote there, and nothing else.

    Raises:
        RunError: the directory cannot be written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if overwrite:
            for checkpoint in directory.glob("checkpoint-*"):
                if checkpoint.name.removeprefix("checkpoint-").isdigit():
                    shutil.rmtree(checkpoint)
            for name in RUN_FILES:
                (directory / name).unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot write to {directory}: {error}") from None


def write_run(directory: Path, content: dict[str, Any]) -> None:
    """Write run.json whole or not at all."""
    draft = directory / f"{RUN_FILE}.tmp"
    draft.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    draft.replace(directory / RUN_FILE)
