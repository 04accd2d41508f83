"""The output directory of a training run: what is in it, and what may be taken out of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors.torch import save_file

from gpt2tg.engine.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_adapter
from gpt2tg.engine.checkpoints import read_shape
from gpt2tg.engine.hub import CONFIG_FILES, TOKENIZER_FILES
from gpt2tg.engine.runs import LOG_FILE, Saved, read_object, saved_checkpoints, step_of_model
from gpt2tg.engine.weights import stream_weights
from gpt2tg.errors import RunError, UserError
from gpt2tg.options import NEWEST
from gpt2tg.training.callbacks import say
from gpt2tg.training.durable import UNFINISHED, damage, put_in_place, remove, seal, write_whole
from gpt2tg.training.saved_state import find_fault

# Written first and read by nobody but us: a directory that holds it was made by a run of ours.
RUN_FILE = "run.json"

# Held as long as a run works in the directory.
LOCK_FILE = ".lock"

PLOT_FILE, SAMPLES_FILE, CARD_FILE = "loss.png", "samples.md", "README.md"

# What a run needs to go on, beside the model. Where accelerate's FSDP cuts the model among processes, it has its own
# name for the optimizer.
STATE_FILES = ("optimizer.pt", "scheduler.pt", "trainer_state.json")
FSDP_WEIGHTS, FSDP_OPTIMIZER = "pytorch_model_fsdp.bin", "optimizer.bin"

# The files of a model, in the order in which they are replaced: the weights last.
WEIGHTS = "model.safetensors"
MODEL_FILES = (*CONFIG_FILES, *TOKENIZER_FILES, ADAPTER_CONFIG, ADAPTER_WEIGHTS, WEIGHTS)

# As transformers names it; the other weights have `transformer.` in front.
OUTPUT_LAYER = "lm_head.weight"

# Where an adapter goes when the directory itself holds the whole model.
ADAPTER_DIRECTORY = "adapter"

# Large files that stand in a checkpoint and in the directory itself take up the disk once.
WEIGHTS_SUFFIX = ".safetensors"

# Where the runs of --try are, one folder each, and what is told of them.
TRIES_DIRECTORY, TRIES_TABLE, TRIES_PLOT = "tries", "tries.csv", "tries.png"

# All that a run leaves in its directory beside the checkpoint-N folders.
RUN_FILES = (RUN_FILE, LOG_FILE, PLOT_FILE, SAMPLES_FILE, CARD_FILE, *MODEL_FILES)


def check_output(directory: Path, resumes: bool, overwrite: bool) -> None:
    """Decide whether a run may have this directory, without touching it.

    Raises:
        UserError: another run works in it, or it holds something and no flag says what to do.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file: give a directory", "output_dir")
    _require_writable(directory)
    if (directory / LOCK_FILE).exists():
        with locked(directory):
            pass
    found = {path.name for path in directory.iterdir()} - {LOCK_FILE} if directory.is_dir() else set()
    if resumes or not found:
        return
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


def _require_writable(directory: Path) -> None:
    nearest = next(path for path in (directory, *directory.resolve().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"{directory} cannot be made: {nearest} is no directory that can be written to", "output_dir")


def _is_ours(directory: Path) -> bool:
    try:
        versions = read_object(directory / RUN_FILE).get("versions")
    except (OSError, ValueError):
        return False
    return isinstance(versions, dict) and "gpt2tg" in versions


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other runs out of a directory that exists.

    Raises:
        UserError: another run works in it.
        RunError: it cannot be written to.
    """
    lock = FileLock(directory / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{directory} is in use by another training run: wait for its end, or choose another", "output_dir"
        ) from None
    except OSError as error:
        raise RunError(f"cannot write to {directory}: {error}") from None
    try:
        yield
    finally:
        lock.release()


def find_resumable(directory: Path, resume: str, passed_over: Container[Path] = ()) -> Path:
    """The checkpoint to go on from: the one named, or the newest that is whole. Broken ones are named and passed over.

    Args:
        passed_over: those that were found broken, and named, before.

    Raises:
        UserError: there is no such checkpoint, or it is not one of this directory.
        RunError: there are checkpoints, and all are broken.
    """
    checkpoints = saved_checkpoints(directory) if directory.is_dir() else []
    if resume != NEWEST and not _same(Path(resume), directory):
        return _named(directory, checkpoints, Path(resume))
    if not checkpoints:
        way_out = "start over with --overwrite" if _is_ours(directory) else "start without --resume"
        raise UserError(f"found no checkpoint-N in {directory}: {way_out}", "resume")
    for saved in reversed(checkpoints):
        if saved.path in passed_over:
            continue
        if not (found := _damage(saved.path)):
            return saved.path
        say(f"{saved.path} is broken and passed over: {found}")
    raise RunError(
        f"all {len(checkpoints)} checkpoints in {directory} are broken and none was touched: "
        "start over with --overwrite, or in another --output_dir"
    )


def _named(directory: Path, checkpoints: list[Saved], path: Path) -> Path:
    for saved in checkpoints:
        if _same(saved.path, path):
            if found := _damage(saved.path):
                raise RunError(f"{path} is broken: {found}; --resume alone goes on from the newest that is whole")
            return saved.path
    steps = ", ".join(saved.path.name for saved in checkpoints) or "no checkpoint-N"
    raise UserError(f"{path} is no checkpoint of --output_dir {directory}, which holds {steps}", "resume")


def _damage(checkpoint: Path) -> str | None:
    """Why a run cannot go on from a checkpoint; None where it can."""
    return damage(checkpoint, _state_files(checkpoint)) or find_fault(checkpoint)


def _state_files(checkpoint: Path) -> tuple[str, ...]:
    return (FSDP_OPTIMIZER, *STATE_FILES[1:]) if (checkpoint / FSDP_WEIGHTS).is_file() else STATE_FILES


def _same(one: Path, other: Path) -> bool:
    return one.expanduser().resolve() == other.expanduser().resolve()


def make_readable(directory: Path) -> None:
    """Give the model's files the permissions of ordinary new files: weights are written for their owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    for name in RUN_FILES:
        if (directory / name).is_file():
            (directory / name).chmod(0o666 & ~umask)


def clear(directory: Path, everything: bool) -> None:
    """Take out what a killed run did not finish; with `everything` all that an earlier run wrote, and nothing else."""
    shutil.rmtree(directory / UNFINISHED, ignore_errors=True)
    if everything:
        for saved in saved_checkpoints(directory):
            remove(saved.path)
        for name in RUN_FILES:
            (directory / name).unlink(missing_ok=True)
        _clear_adapter(directory)
        shutil.rmtree(directory / UNFINISHED, ignore_errors=True)
        _clear_tries(directory)


def _clear_adapter(directory: Path) -> None:
    """Remove the adapter below the merged model; it is that of another step once the directory holds another model."""
    if (below := directory / ADAPTER_DIRECTORY).is_dir():
        for name in MODEL_FILES:
            (below / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds something that is not ours
            below.rmdir()


def _clear_tries(directory: Path) -> None:
    (directory / TRIES_TABLE).unlink(missing_ok=True)
    (directory / TRIES_PLOT).unlink(missing_ok=True)
    if (tries := directory / TRIES_DIRECTORY).is_dir():
        for folder in filter(_is_ours, tries.iterdir()):
            clear(folder, everything=True)
            (folder / LOCK_FILE).unlink(missing_ok=True)
        for folder in (*tries.iterdir(), tries):
            with contextlib.suppress(OSError):  # it holds something that is not ours
                folder.rmdir()


def hold_model_of(directory: Path, source: Path) -> None:
    """Let a directory hold the model of another run, and what that run tells of itself; run.json is left alone."""
    unfinished = directory / UNFINISHED
    unfinished.mkdir(exist_ok=True)
    inside = [f"{ADAPTER_DIRECTORY}/{name}" for name in MODEL_FILES]
    for name in (*inside, *RUN_FILES):
        if name != RUN_FILE and (source / name).is_file():
            (directory / name).parent.mkdir(exist_ok=True)
            copy = _link_or_copy if name.endswith(WEIGHTS_SUFFIX) else shutil.copyfile
            copy(source / name, unfinished / Path(name).name)
            (unfinished / Path(name).name).replace(directory / name)
        elif name != RUN_FILE:
            (directory / name).unlink(missing_ok=True)


class RunDirectory:
    """The directory of a run that works in it: its checkpoints, the model it holds itself, and run.json."""

    def __init__(self, path: Path, save_total_limit: int | None) -> None:
        self.path = path
        self._limit = save_total_limit
        self._record: dict[str, Any] = {}

    def update(self, **content: Any) -> None:
        """Add to run.json, and write it whole or not at all."""
        self._record.update(content)
        write_whole(self.path / RUN_FILE, json.dumps(self._record, indent=2, sort_keys=True) + "\n")

    @property
    def record(self) -> dict[str, Any]:
        """What run.json holds."""
        return self._record

    def add_checkpoint(self, draft: Path, step: int, facts: dict[str, Any]) -> None:
        """Seal a checkpoint that lies elsewhere and give it its name."""
        order = 1 + max((saved.order or 0 for saved in saved_checkpoints(self.path)), default=0)
        seal(draft, {"step": step, "order": order, **facts})
        put_in_place(draft, self.path / f"checkpoint-{step}")

    def publish(self, step: int) -> None:
        """Let the directory itself hold the model of a checkpoint. Where that has been removed, nothing changes."""
        checkpoint = self.path / f"checkpoint-{step}"
        if step == step_of_model(self.path) or not checkpoint.is_dir():
            return
        unfinished = self.path / UNFINISHED
        unfinished.mkdir(exist_ok=True)
        if is_adapter(checkpoint):  # what was merged before is of an older one
            (self.path / WEIGHTS).unlink(missing_ok=True)
            _clear_adapter(self.path)
        for name in MODEL_FILES:
            if (checkpoint / name).is_file():
                copy = _link_or_copy if name.endswith(WEIGHTS_SUFFIX) else shutil.copyfile
                copy(checkpoint / name, unfinished / name)
                (unfinished / name).replace(self.path / name)
        self.update(model={"step": step})

    def merge_adapter(self) -> None:
        """Add the adapter to the weights of its model, and let the directory hold the whole; the adapter goes below."""
        if not is_adapter(self.path):
            return
        unfinished = self.path / UNFINISHED
        unfinished.mkdir(exist_ok=True)
        weights = {
            name if name == OUTPUT_LAYER else f"transformer.{name}": tensor.float().contiguous()
            for name, tensor in stream_weights(self.path, read_shape(self.path))
        }
        save_file(weights, unfinished / WEIGHTS, metadata={"format": "pt"})
        below = self.path / ADAPTER_DIRECTORY
        below.mkdir(exist_ok=True)
        for name in (*CONFIG_FILES, *TOKENIZER_FILES):
            if (self.path / name).is_file():
                shutil.copyfile(self.path / name, below / name)
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            _link_or_copy(self.path / name, below / name)
        (unfinished / WEIGHTS).replace(self.path / WEIGHTS)
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            (self.path / name).unlink()
        make_readable(self.path)

    def prune(self, best_step: int | None) -> None:
        """Remove the oldest checkpoints over the limit, never the best."""
        if self._limit is None:
            return
        whole = [saved for saved in saved_checkpoints(self.path) if saved.order is not None]
        for saved in whole[: -self._limit]:
            if saved.step != best_step:
                remove(saved.path)


def _link_or_copy(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system has no hard links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
