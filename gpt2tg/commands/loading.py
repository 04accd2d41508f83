"""From the model that the flags name to a generator: resolved once, loaded once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gpt2tg.checkpoint.checkpoint import Checkpoint, resolve_checkpoint
from gpt2tg.checkpoint.tuned_settings import Settings, as_flags, beside_chosen
from gpt2tg.commands.flags import Flags
from gpt2tg.commands.memory import advise_on_memory
from gpt2tg.io.streams import notice
from gpt2tg.options import (
    AdapterOptions,
    CheckpointOptions,
    DecodingOptions,
    DeviceOptions,
    DraftOptions,
    Precision,
    PrecisionOptions,
    RevisionOptions,
)

if TYPE_CHECKING:  # they import ctypes and torch
    from gpt2tg.engine.cpu.preload import Preload
    from gpt2tg.generation.generator import Generator


@dataclass(frozen=True)
class ModelChoice:
    """The model that the flags name, where it runs, and in which precision."""

    name: str
    option: str
    """The flag that the name came from, for messages."""
    which: str | None = None
    """`best`, `last` or a step: that checkpoint of the training run in the directory `name`."""
    adapters: tuple[str, ...] = ()
    """LoRA adapters to apply to the model, one after another."""
    device: str = DeviceOptions.device
    precision: Precision = PrecisionOptions.precision
    revision: str | None = None
    """A branch, a tag or a commit of a model of the hub."""
    draft: str | None = None
    """A smaller model that drafts for it."""

    @classmethod
    def from_flags(cls, flags: Flags, name: str, option: str) -> ModelChoice:
        """Choose the model `name`, which was written after the flag `option`."""
        which, device = flags.pick(CheckpointOptions).checkpoint, flags.pick(DeviceOptions).device
        adapters, precision = flags.pick(AdapterOptions).adapter, flags.pick(PrecisionOptions).precision
        revision, draft = flags.pick(RevisionOptions).revision, flags.pick(DraftOptions).draft_model
        return cls(name, option, which, adapters, device, precision, revision, draft)

    def without_draft(self, why: str) -> ModelChoice:
        """Leave out the draft model, and print why, if there is one."""
        if self.draft is not None:
            notice(f"--draft_model is not used: {why}")
        return replace(self, draft=None)

    def check_device(self) -> None:
        """Refuse a device that certainly does not exist.

        Raises:
            UserError: names the device.
        """
        from gpt2tg.engine.cpu.startup import check_device

        check_device(self.device)


@dataclass(frozen=True)
class Loading:
    """A model that is being loaded: torch is imported, and the weights are preloaded in the background if possible."""

    checkpoint: Checkpoint
    device: str
    precision: Precision
    preload: Preload | None
    draft: Checkpoint | None = None

    def tuned_settings(self, options: DecodingOptions, chosen: Collection[str]) -> Settings:
        """Return the tuned settings of the checkpoint that apply beside what the user chose, and print them.

        Args:
            chosen: names of the options that the user chose.

        Raises:
            UserError: the settings are broken.
        """
        found = beside_chosen(self.checkpoint.tuned_settings, options, chosen)
        if words := as_flags(found):
            notice(f"settings of the checkpoint, found by --tune: {words}")
        return found

    def finish(self) -> Generator:
        """Load the model, as `load_generator` does."""
        return load_generator(self.checkpoint, self.device, self.precision, self.preload, self.draft)


def resolve(model: ModelChoice) -> Checkpoint:
    """Find the checkpoint of a model, and print which one `--checkpoint` has chosen.

    Raises:
        UserError: the model or the checkpoint does not exist, or is broken.
    """
    checkpoint = resolve_checkpoint(model.name, model.option, model.which, model.adapters, model.revision)
    if model.which is not None:
        notice(f"model: {checkpoint.name}")
    return checkpoint


def resolve_draft(model: ModelChoice) -> Checkpoint | None:
    """Find the checkpoint of the draft model, if there is one.

    Raises:
        UserError: it does not exist, or is broken.
    """
    return None if model.draft is None else resolve_checkpoint(model.draft, "draft_model")


def start_loading(model: ModelChoice) -> Loading:
    """Find the checkpoint of a model, import torch, and preload the weights meanwhile.

    Raises:
        UserError: the model or the checkpoint does not exist, or is broken.
    """
    from gpt2tg.engine.cpu.startup import import_torch

    checkpoint, draft = resolve(model), resolve_draft(model)
    preload = import_torch(checkpoint, model.device, model.precision)

    from gpt2tg.engine.devices import share_cores

    share_cores()
    return Loading(checkpoint, model.device, model.precision, preload, draft)


@advise_on_memory(
    "the model does not fit into the memory that is free: close other programs, use --precision fp16 or --device cpu, "
    "or take a smaller model"
)
def load_generator(
    checkpoint: Checkpoint,
    device: str,
    precision: Precision,
    preload: Preload | None = None,
    draft: Checkpoint | None = None,
) -> Generator:
    """Load a checkpoint, and print what the user should know about its files.

    Args:
        preload: the thread that packs its weights, if there is one.
        draft: the model that drafts for it, if there is one.

    Raises:
        UserError: the files are broken, torch cannot use the device, or the draft has other tokens.
        RunError: memory ran out.
    """
    from gpt2tg.generation.generator import load_checkpoint

    generator = load_checkpoint(checkpoint, device, precision, preload, draft)
    for note in (*generator.notes, *generator.tokenizer.notes):
        notice(note)
    if precision not in ("auto", generator.model.precision):
        notice(f"--precision {precision} is not available on this processor: {generator.model.precision} is used")
    return generator
