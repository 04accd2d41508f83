"""The output directory of a training run: what is in it, and what may be taken out of it.

It is looked into before torch is imported: nothing that takes long to import is imported here.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

from gpt2tg.checkpoint.adapters import is_adapter
from gpt2tg.checkpoint.checkpoint import read_checkpoint
from gpt2tg.checkpoint.file_names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG_FILES, TOKENIZER_FILES
from gpt2tg.checkpoint.runs import LOG_FILE, MANIFEST, Saved, saved_checkpoints, step_of_model
from gpt2tg.errors import RunError, UserError, one_line
from gpt2tg.io.json_files import read_object
from gpt2tg.options import NEWEST
from gpt2tg.training.output.durable import (
    DRAFT_SUFFIX,
    REMOVED,
    REPLACED,
    UNFINISHED,
    damage,
    delete_files,
    inside,
    put_in_place,
    recover,
    remove,
    seal,
    sync,
    write_whole,
)
from gpt2tg.training.output.locks import LOCK_FILES, locked

# Written first and read by nobody but us: a directory that holds it was made by a run of ours.
RUN_FILE = "run.json"

PLOT_FILE, SAMPLES_FILE, CARD_FILE = "loss.png", "samples.md", "README.md"

# What a run needs to go on, beside the model. Where accelerate's FSDP cuts the model among processes, it has its own
# name for the optimizer.
STATE_FILES = OPTIMIZER_FILE, SCHEDULER_FILE, STATE_FILE = "optimizer.pt", "scheduler.pt", "trainer_state.json"
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

# Written by every run, and by some; all that a run leaves in its directory beside the checkpoint-N folders.
RECORD_FILES = (RUN_FILE, LOG_FILE, PLOT_FILE, CARD_FILE)
RUN_FILES = (*RECORD_FILES, SAMPLES_FILE, *MODEL_FILES)

# What a checkpoint may hold while it is written, by us or by libraries, cut among processes or not.
DRAFT_PATTERNS = (
    *MODEL_FILES,
    *STATE_FILES,
    MANIFEST,
    CARD_FILE,
    "chat_template.jinja",
    "added_tokens.json",
    "*.index.json",
)
DRAFT_PATTERNS += ("*.safetensors", "*.pt", "*.pth", "*.bin", "*.distcp", ".metadata", "latest", "zero_to_fp32.py")


def is_ours(directory: Path) -> bool:
    """Whether a run of ours made a directory."""
    versions = _run_of(directory).get("versions")
    return isinstance(versions, dict) and "gpt2tg" in versions


def is_search(directory: Path) -> bool:
    """Whether it is that of a search with --try."""
    return isinstance(_run_of(directory).get("tries"), list)


def _run_of(directory: Path) -> dict[str, Any]:
    """What run.json holds; nothing where it cannot be read."""
    try:
        return read_object(directory / RUN_FILE)
    except (OSError, ValueError):
        return {}


def written_files(directory: Path) -> set[str]:
    """The files that runs of ours wrote into a directory, beside its checkpoints: run.json lists them.

    Of a run that kept no list yet it is those that one may write and that are there.
    """
    run = _run_of(directory)
    if not run:
        return set()
    if isinstance(names := run.get("files"), list):
        return {*inside(names), RUN_FILE}
    every = (*RUN_FILES, *(f"{ADAPTER_DIRECTORY}/{name}" for name in MODEL_FILES), TRIES_TABLE, TRIES_PLOT)
    return {name for name in every if (directory / name).is_file()}


def runs_below(directory: Path) -> list[Path]:
    """The folders of the runs of --try."""
    tries = directory / TRIES_DIRECTORY
    return [folder for folder in sorted(tries.iterdir()) if is_ours(folder)] if tries.is_dir() else []


def find_resumable(directory: Path, resume: str, passed_over: Container[Path] = ()) -> Path:
    """The checkpoint to go on from: the one named, or the newest that is whole. Broken ones are named and passed over.

    Args:
        passed_over: those that were found broken, and named, before.

    Raises:
        UserError: there is no such checkpoint, or it is not one of this directory.
        RunError: there are checkpoints, and all are broken.
    """
    checkpoints = saved_checkpoints(directory) if directory.is_dir() else []
    check_resumable(directory, resume)
    if resume != NEWEST and not _same(Path(resume), directory):
        return _named(checkpoints, Path(resume))
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


def check_resumable(directory: Path, resume: str) -> None:
    """Refuse to go on where there is no such checkpoint, whole or not.

    Raises:
        UserError: there is none, or it is not one of this directory.
    """
    checkpoints = saved_checkpoints(directory) if directory.is_dir() else []
    if resume != NEWEST and not _same(Path(resume), directory):
        if not any(_same(saved.path, Path(resume)) for saved in checkpoints):
            steps = ", ".join(saved.path.name for saved in checkpoints) or "no checkpoint-N"
            raise UserError(f"{resume} is no checkpoint of --output_dir {directory}, which holds {steps}", "resume")
    elif not checkpoints:
        way_out = "start over with --overwrite" if is_ours(directory) else "start without --resume"
        raise UserError(f"found no checkpoint-N in {directory}: {way_out}", "resume")


def _named(checkpoints: list[Saved], path: Path) -> Path:
    named = next(saved.path for saved in checkpoints if _same(saved.path, path))
    if found := _damage(named):
        raise RunError(f"{path} is broken: {found}; --resume alone goes on from the newest that is whole")
    return named


def _damage(checkpoint: Path) -> str | None:
    """Why a run cannot go on from a checkpoint; None where it can."""
    from gpt2tg.training.output.saved_state import find_fault  # needs torch, which a directory is looked into without

    return damage(checkpoint, _state_files(checkpoint)) or find_fault(checkpoint)


def _state_files(checkpoint: Path) -> tuple[str, ...]:
    return (FSDP_OPTIMIZER, *STATE_FILES[1:]) if (checkpoint / FSDP_WEIGHTS).is_file() else STATE_FILES


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one.expanduser()) == os.path.realpath(other.expanduser())  # also of links in a circle


def make_readable(directory: Path) -> None:
    """Give the model's files the permissions of ordinary new files: weights are written for their owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    for name in RUN_FILES:
        if (directory / name).is_file():
            (directory / name).chmod(0o666 & ~umask)


def clear(directory: Path, everything: bool) -> None:
    """Take out what a killed run did not finish; with `everything` all that earlier runs wrote, and nothing else.

    What no run of ours wrote stays where it is; where that keeps a folder of ours, a line says so.
    """
    recover(directory)
    _clear_drafts(directory)
    if not everything:
        return
    _clear_tries(directory)
    for saved in saved_checkpoints(directory):
        remove(saved.path)
    delete_files(directory, written_files(directory) - {RUN_FILE})
    (directory / RUN_FILE).unlink(missing_ok=True)  # the last: it tells whose directory this is
    _remove_if_empty(directory / UNFINISHED)
    _tell_of_leftovers(directory)


def _clear_drafts(directory: Path) -> None:
    """Remove what was being written when a run was killed."""
    unfinished = directory / UNFINISHED
    folders = [unfinished, *(path for path in unfinished.rglob("*") if path.is_dir() and not _is_aside(path))]
    drafts = [path for folder in folders for pattern in DRAFT_PATTERNS for path in folder.glob(pattern)]
    delete_files(directory, [path.relative_to(directory).as_posix() for path in drafts])
    delete_files(directory, [name + DRAFT_SUFFIX for name in (*RUN_FILES, TRIES_TABLE)])
    for folder in sorted(folders, reverse=True):
        _remove_if_empty(folder)


def _is_aside(path: Path) -> bool:
    """Whether it is, or lies in, a checkpoint that is removed or replaced, which `recover` sees to."""
    return any(part.startswith((REMOVED, REPLACED)) for part in path.parts)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # it is not there, or holds something that is not ours
        folder.rmdir()


def _tell_of_leftovers(directory: Path) -> None:
    ours = [path for path in directory.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    ours += [directory / name for name in (UNFINISHED, ADAPTER_DIRECTORY, TRIES_DIRECTORY)]
    left = [path for path in ours if path.is_dir()]
    if left:
        names = ", ".join(f"{path.name} ({_contents(path)})" for path in sorted(left))
        say(f"left in {directory}, because no manifest of a run names what they hold: {names}")


def _contents(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "empty"


def _clear_tries(directory: Path) -> None:
    for folder in runs_below(directory):
        with locked(folder):
            clear(folder, everything=True)
        for name in LOCK_FILES:
            (folder / name).unlink(missing_ok=True)
        _remove_if_empty(folder)
    _remove_if_empty(directory / TRIES_DIRECTORY)


def hold_model_of(directory: Path, source: Path) -> None:
    """Let a directory hold the model of another run, and what that run tells of itself; of run.json only the list of
    files changes."""
    unfinished = directory / UNFINISHED
    unfinished.mkdir(exist_ok=True)
    files = {*RUN_FILES, *(f"{ADAPTER_DIRECTORY}/{name}" for name in MODEL_FILES)} - {RUN_FILE}
    there = {name for name in files if (source / name).is_file()}
    earlier = written_files(directory)
    write_run(directory, {**_run_of(directory), "files": [*earlier, *there]})
    delete_files(directory, (earlier & files) - there)
    for name in sorted(there, key=lambda name: (name.endswith(WEIGHTS_SUFFIX), name)):
        (directory / name).parent.mkdir(exist_ok=True)
        _put(source / name, unfinished / Path(name).name, directory / name)


def write_run(directory: Path, run: dict[str, Any]) -> None:
    """Write run.json. What it listed as written stays listed."""
    files = sorted({*run.get("files", ()), *RECORD_FILES, *written_files(directory)})
    write_whole(directory / RUN_FILE, json.dumps({**run, "files": files}, indent=2, sort_keys=True) + "\n")


class RunDirectory:
    """The directory of a run that works in it: its checkpoints, the model it holds itself, and run.json."""

    def __init__(self, path: Path, save_total_limit: int | None) -> None:
        """`save_total_limit` is how many checkpoints are kept; None or 0 keeps all."""
        self.path = path
        self._limit = save_total_limit
        self._record: dict[str, Any] = {}

    def update(self, **content: Any) -> None:
        """Add to run.json, and write it whole or not at all."""
        self._record.update(content)
        write_run(self.path, self._record)

    def will_write(self, *names: str) -> None:
        """Have run.json list files before they are written: no others are ever deleted."""
        if not written_files(self.path).issuperset(names):
            self.update(files=[*self._record.get("files", ()), *names])

    @property
    def record(self) -> dict[str, Any]:
        """What run.json holds."""
        return self._record

    def add_checkpoint(self, draft: Path, step: int, facts: dict[str, Any]) -> None:
        """Seal a checkpoint that lies elsewhere and give it its name."""
        order = 1 + max((saved.order or 0 for saved in saved_checkpoints(self.path)), default=0)
        seal(draft, {"step": step, "order": order, **facts})
        put_in_place(draft, self.path / f"checkpoint-{step}")

    def holds(self, step: int) -> bool:
        """Whether the directory itself holds the model of this step, its weights as large as they were written."""
        model = _run_of(self.path).get("model")
        sizes = model.get("sizes", {}) if isinstance(model, dict) else {}
        return step_of_model(self.path) == step and sizes == self._sizes(sizes)

    def _sizes(self, names: Iterable[str]) -> dict[str, int]:
        return {name: (self.path / name).stat().st_size for name in names if (self.path / name).is_file()}

    def publish(self, step: int) -> None:
        """Let the directory itself hold the model of a checkpoint. Where that has been removed, nothing changes."""
        checkpoint = self.path / f"checkpoint-{step}"
        if self.holds(step) or not checkpoint.is_dir():
            return
        unfinished = self.path / UNFINISHED
        unfinished.mkdir(exist_ok=True)
        names = [name for name in MODEL_FILES if (checkpoint / name).is_file()]
        self.will_write(*names)
        if is_adapter(checkpoint):  # what was merged before is of an older one
            delete_files(self.path, [WEIGHTS, *self._adapter_below()])
        for name in names:
            _put(checkpoint / name, unfinished / name, self.path / name)
        self._note_model(step)

    def _adapter_below(self) -> set[str]:
        """The files of the adapter beside a merged model; it is of another step once the directory holds another."""
        return {name for name in written_files(self.path) if name.startswith(f"{ADAPTER_DIRECTORY}/")}

    def _note_model(self, step: int | None) -> None:
        """Say in run.json what the directory holds, once that is on the disk."""
        sync(self.path)
        self.update(model={"step": step, "sizes": self._sizes((WEIGHTS, ADAPTER_WEIGHTS))})

    def merge_adapter(self) -> None:
        """Add the adapter to the weights of its model, and let the directory hold the whole; the adapter goes below."""
        if not (self.path / ADAPTER_CONFIG).is_file():
            return
        unfinished, below = self.path / UNFINISHED, self.path / ADAPTER_DIRECTORY
        unfinished.mkdir(exist_ok=True)
        below.mkdir(exist_ok=True)
        moved = [ADAPTER_CONFIG, ADAPTER_WEIGHTS]
        copied = [name for name in (*CONFIG_FILES, *TOKENIZER_FILES) if name in written_files(self.path)]
        self.will_write(WEIGHTS, *(f"{ADAPTER_DIRECTORY}/{name}" for name in (*copied, *moved)))
        for name in (*copied, *moved):
            if (self.path / name).is_file():
                _put(self.path / name, unfinished / name, below / name)
        sync(below)
        if is_adapter(self.path):  # else a run was killed when all that was left was to delete it here
            self._write_merged(unfinished / WEIGHTS)
            (unfinished / WEIGHTS).replace(self.path / WEIGHTS)
            sync(self.path)
        delete_files(self.path, moved)
        make_readable(self.path)
        self._note_model(step_of_model(self.path))

    def _write_merged(self, file: Path) -> None:
        from safetensors.torch import save_file

        from gpt2tg.checkpoint.weights import stream_weights

        weights = {
            name if name == OUTPUT_LAYER else f"transformer.{name}": tensor.float().contiguous()
            for name, tensor in stream_weights(read_checkpoint(self.path))
        }
        save_file(weights, file, metadata={"format": "pt"})
        sync(file)

    def tidy(self, step: int, best_step: int | None) -> None:
        """After a save: let the directory hold the model of this step, and remove checkpoints over the limit.

        What another program has open, as Windows has it, is told of and tried again at the next save.
        """
        try:
            self.publish(step)
        except PermissionError as error:
            say(f"{self.path} does not hold step {step} yet: {one_line(error)}; tried again at the next save")
        self.prune(best_step)

    def absent_weights(self) -> list[str]:
        """The files of weights that the directory does not hold. An upload on the way may have held them."""
        return [name for name in (WEIGHTS, ADAPTER_CONFIG, ADAPTER_WEIGHTS) if not (self.path / name).is_file()]

    def prune(self, best_step: int | None) -> None:
        """Remove the oldest checkpoints over the limit, never the best."""
        if not self._limit:
            return
        whole = [saved for saved in saved_checkpoints(self.path) if saved.order is not None]
        for saved in whole[: -self._limit]:
            if saved.step != best_step:
                self._remove(saved.path)

    def _remove(self, checkpoint: Path) -> None:
        try:
            remove(checkpoint)
        except OSError as error:
            say(f"{checkpoint} is not removed yet: {one_line(error)}; tried again at the next save")
            return
        if checkpoint.is_dir():
            say(f"{checkpoint} stays, because it holds what no run wrote: {_contents(checkpoint)}")


def _put(source: Path, draft: Path, target: Path) -> None:
    """The same file in another place, whole or not there: linked if it is large and links are possible, else copied."""
    draft.unlink(missing_ok=True)
    is_linked = False
    if source.name.endswith(WEIGHTS_SUFFIX):
        with contextlib.suppress(OSError):
            os.link(source, draft)
            is_linked = True
    if not is_linked:
        shutil.copyfile(source, draft)
        sync(draft)
    draft.replace(target)


def say(text: str) -> None:
    """As in `callbacks`, whose libraries take seconds to import: a run with something to tell needs them anyway."""
    from gpt2tg.training import callbacks

    callbacks.say(text)
