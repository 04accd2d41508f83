"""Find the checkpoint that --resume continues from."""

from __future__ import annotations

import os
from collections.abc import Container
from pathlib import Path

from gpt2tg.checkpoint.runs import Saved, saved_checkpoints
from gpt2tg.errors import RunError, UserError
from gpt2tg.options import NEWEST
from gpt2tg.training.console import log
from gpt2tg.training.output.durable import find_damage
from gpt2tg.training.output.layout import FSDP_OPTIMIZER, FSDP_WEIGHTS, STATE_FILES, is_ours


def check_resumable(directory: Path, resume: str) -> None:
    """Check that the requested checkpoint exists, intact or not. Does not import torch.

    Args:
        resume: NEWEST, the output directory, or the path of a checkpoint.

    Raises:
        UserError: there is no checkpoint, or the path is not a checkpoint of this directory.
    """
    checkpoints = saved_checkpoints(directory) if directory.is_dir() else []
    if _names_a_checkpoint(resume, directory):
        if not any(_is_same(saved.path, Path(resume)) for saved in checkpoints):
            steps = ", ".join(saved.path.name for saved in checkpoints) or "no checkpoint-N"
            raise UserError(f"{resume} is no checkpoint of --output_dir {directory}, which holds {steps}", "resume")
    elif not checkpoints:
        way_out = "start over with --overwrite" if is_ours(directory) else "start without --resume"
        raise UserError(f"found no checkpoint-N in {directory}: {way_out}", "resume")


def find_resumable(directory: Path, resume: str, skipped: Container[Path] = ()) -> Path:
    """Return the requested checkpoint, or the newest intact one. Damaged ones are skipped with a warning.

    Args:
        resume: NEWEST, the output directory, or the path of a checkpoint.
        skipped: checkpoints already found damaged.

    Raises:
        UserError: there is no checkpoint, or the path is not a checkpoint of this directory.
        RunError: the requested checkpoint is damaged, or all are.
    """
    checkpoints = saved_checkpoints(directory) if directory.is_dir() else []
    check_resumable(directory, resume)
    if _names_a_checkpoint(resume, directory):
        return _find_named(checkpoints, Path(resume))
    for saved in reversed(checkpoints):
        if saved.path in skipped:
            continue
        if not (fault := _find_fault(saved.path)):
            return saved.path
        log.warning(f"{saved.path} is damaged and skipped: {fault}")
    raise RunError(
        f"all {len(checkpoints)} checkpoints in {directory} are damaged; nothing was changed: "
        "start over with --overwrite, or in another --output_dir"
    )


def _find_named(checkpoints: list[Saved], path: Path) -> Path:
    named = next(saved.path for saved in checkpoints if _is_same(saved.path, path))
    if fault := _find_fault(named):
        raise RunError(f"{path} is damaged: {fault}; --resume without a path takes the newest intact checkpoint")
    return named


def _find_fault(checkpoint: Path) -> str | None:
    """Return why a run cannot continue from a checkpoint; None if it can."""
    from gpt2tg.training.output.saved_state import find_fault  # imports torch

    is_sharded = (checkpoint / FSDP_WEIGHTS).is_file()
    required = (FSDP_OPTIMIZER, *STATE_FILES[1:]) if is_sharded else STATE_FILES
    return find_damage(checkpoint, required) or find_fault(checkpoint)


def _names_a_checkpoint(resume: str, directory: Path) -> bool:
    return resume != NEWEST and not _is_same(Path(resume), directory)


def _is_same(one: Path, other: Path) -> bool:
    return os.path.realpath(one.expanduser()) == os.path.realpath(
        other.expanduser()
    )  # Path.resolve fails on link loops
