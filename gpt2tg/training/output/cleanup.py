"""Delete what a killed run left unfinished or, for --overwrite, what earlier runs wrote; never any other file."""

from __future__ import annotations

import contextlib
from pathlib import Path

from gpt2tg.checkpoint.file_names import ADAPTER_DIRECTORY
from gpt2tg.checkpoint.runs import MANIFEST, saved_checkpoints
from gpt2tg.training.console import log
from gpt2tg.training.output.durable import (
    DRAFT_SUFFIX,
    REMOVED,
    REPLACED,
    UNFINISHED,
    delete_files,
    recover,
    remove,
)
from gpt2tg.training.output.layout import (
    CARD_FILE,
    MODEL_FILES,
    RUN_FILE,
    RUN_FILES,
    STATE_FILES,
    TRIES_DIRECTORY,
    TRIES_PLOT,
    TRIES_TABLE,
    runs_below,
    written_files,
)
from gpt2tg.training.output.locks import LOCK_FILES, locked

# The files that an unfinished checkpoint may hold, whether we or a library wrote them, sharded or not.
DRAFT_PATTERNS = (
    *MODEL_FILES,
    *STATE_FILES,
    MANIFEST,
    CARD_FILE,
    "chat_template.jinja",
    "added_tokens.json",
    "*.index.json",
    "*.safetensors",
    "*.pt",
    "*.pth",
    "*.bin",
    "*.distcp",
    ".metadata",
    "latest",
    "zero_to_fp32.py",
)


def remove_unfinished(directory: Path) -> None:
    """Complete or undo what a killed run had begun."""
    recover(directory)
    _delete_drafts(directory)


def remove_earlier_runs(directory: Path) -> None:
    """Delete all that earlier runs wrote, and log which of their folders stay because they hold other files."""
    remove_unfinished(directory)
    _delete_tries(directory)
    for saved in saved_checkpoints(directory):
        remove(saved.path)
    delete_files(directory, written_files(directory) - {RUN_FILE})
    (directory / RUN_FILE).unlink(missing_ok=True)  # last, because it marks the directory as ours
    _remove_if_empty(directory / UNFINISHED)
    _log_leftovers(directory)


def describe_content(folder: Path) -> str:
    """Return the names of up to three files in a folder."""
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "empty"


def _delete_drafts(directory: Path) -> None:
    unfinished = directory / UNFINISHED
    folders = [unfinished, *(path for path in unfinished.rglob("*") if path.is_dir() and not _is_set_aside(path))]
    drafts = [path for folder in folders for pattern in DRAFT_PATTERNS for path in folder.glob(pattern)]
    delete_files(directory, [path.relative_to(directory).as_posix() for path in drafts])
    delete_files(directory, [name + DRAFT_SUFFIX for name in (*RUN_FILES, TRIES_TABLE, TRIES_PLOT)])
    for folder in sorted(folders, reverse=True):
        _remove_if_empty(folder)


def _is_set_aside(path: Path) -> bool:
    """Whether this is, or lies in, a checkpoint being removed or replaced, which `recover` handles."""
    return any(part.startswith((REMOVED, REPLACED)) for part in path.parts)


def _delete_tries(directory: Path) -> None:
    for folder in runs_below(directory):
        with locked(folder):
            remove_earlier_runs(folder)
        for name in LOCK_FILES:
            (folder / name).unlink(missing_ok=True)
        _remove_if_empty(folder)
    _remove_if_empty(directory / TRIES_DIRECTORY)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # it does not exist, or holds other files
        folder.rmdir()


def _log_leftovers(directory: Path) -> None:
    ours = [path for path in directory.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    ours += [directory / name for name in (UNFINISHED, ADAPTER_DIRECTORY, TRIES_DIRECTORY)]
    left = [path for path in ours if path.is_dir()]
    if left:
        names = ", ".join(f"{path.name} ({describe_content(path)})" for path in sorted(left))
        log.info(f"left in {directory}, because no manifest of a run lists their content: {names}")
