"""The output directory of a run at work: its checkpoints, the model in the directory itself, and run.json."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gpt2tg.checkpoint.adapters import is_adapter
from gpt2tg.checkpoint.checkpoint import read_checkpoint
from gpt2tg.checkpoint.file_names import (
    ADAPTER_CONFIG,
    ADAPTER_DIRECTORY,
    ADAPTER_WEIGHTS,
    CONFIG_FILES,
    TOKENIZER_FILES,
)
from gpt2tg.checkpoint.runs import saved_checkpoints, step_of_model
from gpt2tg.errors import one_line
from gpt2tg.io.atomic import sync
from gpt2tg.training.console import log
from gpt2tg.training.output.cleanup import describe_content
from gpt2tg.training.output.durable import UNFINISHED, delete_files, put_in_place, remove, seal
from gpt2tg.training.output.layout import (
    ADAPTER_DIRECTORY_FILES,
    CARD_FILE,
    MODEL_FILES,
    RUN_FILE,
    RUN_FILES,
    WEIGHTS,
    is_card_edited,
    make_readable,
    read_run,
    write_run,
    written_files,
)

# Files of this type are hard-linked, so that checkpoint and directory share the disk space.
WEIGHTS_SUFFIX = ".safetensors"


class RunDirectory:
    """Writes into an output directory, and removes from it only what runs of ours wrote."""

    def __init__(self, path: Path, save_total_limit: int | None) -> None:
        """Set up the directory without touching the disk.

        Args:
            save_total_limit: how many checkpoints to keep besides the best; None or 0 keeps all.
        """
        self.path = path
        self._limit = save_total_limit
        self._record: dict[str, Any] = {}

    @property
    def record(self) -> dict[str, Any]:
        """What this run wrote to run.json so far."""
        return self._record

    def update(self, **content: Any) -> None:
        """Add entries to run.json."""
        self._record.update(content)
        write_run(self.path, self._record)

    def announce_files(self, *names: str) -> None:
        """List files in run.json before they are written: no others are ever deleted."""
        if not written_files(self.path).issuperset(names):
            self.update(files=[*self._record.get("files", ()), *names])

    def add_checkpoint(self, draft: Path, step: int, facts: dict[str, Any]) -> None:
        """Seal a draft and rename it to checkpoint-`step`. Its manifest also holds `facts`."""
        order = 1 + max((saved.order or 0 for saved in saved_checkpoints(self.path)), default=0)
        seal(draft, {"step": step, "order": order, **facts})
        put_in_place(draft, self.path / f"checkpoint-{step}")

    def holds(self, step: int) -> bool:
        """Whether the directory itself holds the model of this step, with weights of the recorded size."""
        model = read_run(self.path).get("model")
        sizes = model.get("sizes", {}) if isinstance(model, dict) else {}
        return step_of_model(self.path) == step and sizes == self._sizes(sizes)

    def publish(self, step: int) -> None:
        """Make the directory itself hold the model of a checkpoint. Does nothing if that checkpoint is gone."""
        checkpoint = self.path / f"checkpoint-{step}"
        if self.holds(step) or not checkpoint.is_dir():
            return
        unfinished = self._unfinished()
        names = [name for name in MODEL_FILES if (checkpoint / name).is_file()]
        self.announce_files(*names)
        if is_adapter(checkpoint):  # a merged model here would be of an earlier step
            delete_files(self.path, [WEIGHTS, *self._adapter_below()])
        for name in names:
            _link_or_copy(checkpoint / name, unfinished / name, self.path / name)
        self._record_model(step)

    def merge_adapter(self) -> None:
        """Make the directory hold the merged model, and move the adapter into a folder below.

        A merge that a kill interrupted is completed.
        """
        if not (self.path / ADAPTER_CONFIG).is_file():
            return
        unfinished, below = self._unfinished(), self.path / ADAPTER_DIRECTORY
        below.mkdir(exist_ok=True)
        moved = [ADAPTER_CONFIG, ADAPTER_WEIGHTS]
        copied = [name for name in (*CONFIG_FILES, *TOKENIZER_FILES) if name in written_files(self.path)]
        self.announce_files(WEIGHTS, *(f"{ADAPTER_DIRECTORY}/{name}" for name in (*copied, *moved)))
        for name in (*copied, *moved):
            if (self.path / name).is_file():
                _link_or_copy(self.path / name, unfinished / name, below / name)
        sync(below)
        if is_adapter(self.path):  # otherwise a killed run got as far as deleting the adapter here
            self._write_merged(unfinished / WEIGHTS)
            (unfinished / WEIGHTS).replace(self.path / WEIGHTS)
            sync(self.path)
        delete_files(self.path, moved)
        make_readable(self.path)
        self._record_model(step_of_model(self.path))

    def tidy(self, step: int, best_step: int | None) -> None:
        """After a save, publish the model of this step and remove checkpoints over the limit.

        A file that another program has open, as Windows locks it, is logged and tried again at the next save.
        """
        try:
            self.publish(step)
        except PermissionError as error:
            log.warning(f"{self.path} does not hold step {step} yet: {one_line(error)}; tried again at the next save")
        self.prune(best_step)

    def prune(self, best_step: int | None) -> None:
        """Remove the oldest checkpoints over the limit, but never the best."""
        if not self._limit:
            return
        sealed = [saved for saved in saved_checkpoints(self.path) if saved.order is not None]
        for saved in sealed[: -self._limit]:
            if saved.step != best_step:
                self._remove(saved.path)

    def missing_weights(self) -> list[str]:
        """Return the weight files that the directory does not hold; an earlier upload may have had them."""
        return [name for name in (WEIGHTS, ADAPTER_CONFIG, ADAPTER_WEIGHTS) if not (self.path / name).is_file()]

    def _unfinished(self) -> Path:
        folder = self.path / UNFINISHED
        folder.mkdir(exist_ok=True)
        return folder

    def _sizes(self, names: Iterable[str]) -> dict[str, int]:
        return {name: (self.path / name).stat().st_size for name in names if (self.path / name).is_file()}

    def _adapter_below(self) -> set[str]:
        """Return the files of the adapter that was moved out of a merged model."""
        return {name for name in written_files(self.path) if name.startswith(f"{ADAPTER_DIRECTORY}/")}

    def _record_model(self, step: int | None) -> None:
        """Record in run.json which model the directory holds, after the model is on the disk."""
        sync(self.path)
        self.update(model={"step": step, "sizes": self._sizes((WEIGHTS, ADAPTER_WEIGHTS))})

    def _write_merged(self, file: Path) -> None:
        from gpt2tg.checkpoint.saving import save_weights
        from gpt2tg.checkpoint.weights import stream_weights

        save_weights(file, stream_weights(read_checkpoint(self.path)))

    def _remove(self, checkpoint: Path) -> None:
        try:
            remove(checkpoint)
        except OSError as error:
            log.warning(f"{checkpoint} is not removed yet: {one_line(error)}; tried again at the next save")
            return
        if checkpoint.is_dir():
            log.info(f"{checkpoint} stays, because it holds files that no run wrote: {describe_content(checkpoint)}")


def publish_from(source: Path, directory: Path) -> None:
    """Make a directory hold the model and the records of another run's directory; a card that was edited stays.

    Of run.json only the list of files changes.
    """
    unfinished = directory / UNFINISHED
    unfinished.mkdir(exist_ok=True)
    copyable = {*RUN_FILES, *ADAPTER_DIRECTORY_FILES} - {RUN_FILE}
    if is_card_edited(directory):
        copyable -= {CARD_FILE}
    names = {name for name in copyable if (source / name).is_file()}
    earlier = written_files(directory)
    write_run(directory, {**read_run(directory), "files": [*earlier, *names]})
    delete_files(directory, (earlier & copyable) - names)
    for name in sorted(names, key=lambda name: (name.endswith(WEIGHTS_SUFFIX), name)):
        (directory / name).parent.mkdir(exist_ok=True)
        _link_or_copy(source / name, unfinished / Path(name).name, directory / name)


def _link_or_copy(source: Path, draft: Path, target: Path) -> None:
    """Put a file in a second place atomically: hard-link weights if the file system can, copy everything else."""
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
