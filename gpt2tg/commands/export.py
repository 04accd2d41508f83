"""Export: save a model for other programs, or merge an adapter into its model."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2tg.checkpoint.adapters import is_adapter
from gpt2tg.checkpoint.checkpoint import Checkpoint, find_adapter, read_checkpoint, resolve_checkpoint, with_adapters
from gpt2tg.commands.flags import Flags, flags_of, notice_unused
from gpt2tg.errors import UserError
from gpt2tg.io.streams import notice
from gpt2tg.options import DeviceOptions, ExportOptions, ModelNameOptions, TrainingOptions

if TYPE_CHECKING:  # imports tokenizers and torch
    from gpt2tg.export.source import Source

# The flags of a training run that an export uses.
USED = ("output_dir", "overwrite")

# Packages that only these formats need.
PACKAGES = {"gguf": "gguf", "ctranslate2": "ctranslate2"}


@dataclass(frozen=True)
class ExportCommand:
    """Which model to write where, and in which form."""

    options: ExportOptions
    model_name: str | None
    """None if the flag was not given."""
    output_dir: Path
    overwrite: bool
    given: frozenset[str]

    @classmethod
    def from_flags(cls, flags: Flags) -> ExportCommand:
        """Build the command.

        Raises:
            UserError: a value out of range, or flags that contradict each other.
        """
        training = flags.pick(TrainingOptions)
        name = flags.pick(ModelNameOptions).model_name if "model_name" in flags.names else None
        return cls(
            flags.pick(ExportOptions), name, Path(training.output_dir).expanduser(), training.overwrite, flags.names
        )


def export(command: ExportCommand) -> None:
    """Write the model.

    Raises:
        UserError: a flag or the model cannot be used; named before anything is written.
    """
    unused = [name for name in (*flags_of(TrainingOptions), *flags_of(DeviceOptions)) if name not in USED]
    notice_unused(command.given, unused, "nothing is trained")
    _check_packages(command.options.export)
    checkpoint = _choose(command)
    _check_output(command, checkpoint)
    _write(command, checkpoint)


def _check_packages(form: str | None) -> None:
    package = PACKAGES.get(form or "")
    if package and importlib.util.find_spec(package) is None:
        raise UserError(f"{form} needs the package {package}: pip install {package}", "export")


def _choose(command: ExportCommand) -> Checkpoint:
    """Return the model to write."""
    if command.options.merge is None:
        if command.model_name is None:
            raise UserError("is required: give the model to export, a directory or a name", "model_name")
        return resolve_checkpoint(command.model_name)
    if command.model_name is not None:
        return with_adapters(resolve_checkpoint(command.model_name), [command.options.merge], "merge")
    return read_checkpoint(find_adapter(command.options.merge, "merge"))


def _check_output(command: ExportCommand, checkpoint: Checkpoint) -> None:
    from gpt2tg.export.output import check_unused
    from gpt2tg.training.output.layout import is_ours
    from gpt2tg.training.output.reservation import check_output

    directory = command.output_dir
    check_output(directory, resumes=True, overwrite=False)
    part: Checkpoint | None = checkpoint
    while part is not None:
        if part.directory.resolve() == directory.resolve():
            raise UserError(f"{directory} holds the model to read: choose another", "output_dir")
        part = part.base
    if is_ours(directory) or is_adapter(directory):
        raise UserError(f"{directory} holds a training run or an adapter: choose another", "output_dir")
    check_unused(directory, command.overwrite)


def _write(command: ExportCommand, checkpoint: Checkpoint) -> None:
    from gpt2tg.checkpoint.tokenizer_loading import load_tokenizer
    from gpt2tg.checkpoint.weights import stream_weights
    from gpt2tg.export.output import filling
    from gpt2tg.export.source import Source
    from gpt2tg.training.model.copied_files import files_to_copy

    shape, form = checkpoint.shape, command.options.export
    tokenizer = load_tokenizer(checkpoint.tokenizer_directory, shape.vocab_size, shape.end_ids)
    files = files_to_copy(checkpoint.tokenizer_directory, shape, tokenizer)
    source = Source(checkpoint, stream_weights(checkpoint), tokenizer, files.save_pretrained)
    with filling(command.output_dir, replaces_model=form != "gguf") as draft:
        _writer(form)(draft, source, command.options.chosen_precision)
    for note in (*checkpoint.notes, *source.weights.notes, *tokenizer.notes):
        notice(note)
    notice(f"{checkpoint.name} is saved in {command.output_dir}")


def _writer(form: str | None) -> Callable[[Path, Source, str], None]:
    """Return the function that writes a format; None stands for a merged model."""
    if form == "gguf":
        from gpt2tg.export.gguf_file import write_gguf

        return write_gguf
    if form == "ctranslate2":
        from gpt2tg.export.ctranslate2_directory import write_ctranslate2

        return write_ctranslate2
    from gpt2tg.export.transformers_directory import write_directory

    return write_directory
