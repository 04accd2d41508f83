"""Serve: answer other programs over HTTP."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2tg.checkpoint.checkpoint import Checkpoint
from gpt2tg.commands.flags import Flags, flags_of, notice_unused
from gpt2tg.commands.loading import ModelChoice, start_loading
from gpt2tg.commands.memory import advise_on_memory
from gpt2tg.errors import UserError
from gpt2tg.io.processes import require_single_process
from gpt2tg.io.streams import notice
from gpt2tg.options import CompareOptions, DecodingOptions, PromptOptions, ServingOptions, TuneOptions, only

if TYPE_CHECKING:  # imports torch
    from gpt2tg.generation.generator import Generator

# Packages that only the server needs.
PACKAGES = ("starlette", "uvicorn", "prometheus_client")


@dataclass(frozen=True)
class ServeCommand:
    """Where to listen, and the settings of requests that name none."""

    options: ServingOptions
    decoding: DecodingOptions
    given: dict[str, Any]
    """The decoding flags that were given."""

    @classmethod
    def from_flags(cls, flags: Flags) -> ServeCommand:
        """Build the command.

        Raises:
            UserError: a value out of range, or flags that contradict each other.
        """
        unused = [*flags_of(CompareOptions), *flags_of(TuneOptions), *flags_of(PromptOptions)]
        notice_unused(flags.names, unused, "requests bring their own prompts")
        given = only(DecodingOptions, dict(flags.values))
        return cls(flags.pick(ServingOptions), flags.decoding(), given)


@advise_on_memory("lower --max_rows, or use --device cpu")
def serve(model: ModelChoice, command: ServeCommand) -> None:
    """Serve the model until SIGINT or SIGTERM.

    Raises:
        UserError: a flag, the address or the model cannot be used.
    """
    require_single_process("is for", "serve")
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise UserError(f"needs the package {package}: pip install {' '.join(PACKAGES)}", "serve")
    model = model.without_draft("--serve generates for all requests together, token by token")
    model.check_device()

    from gpt2tg.serving.run import bind, new_server

    with bind(command.options) as listener:
        loading = start_loading(model)
        tuned = loading.tuned_settings(command.decoding, command.given)
        generator = loading.finish()

        from gpt2tg.serving.app import new_service

        options, defaults = _with_rows_that_fit(command.options, generator), {**tuned, **command.given}
        service = new_service(generator, _public_name(loading.checkpoint), defaults, options)
        new_server(service, options, notice).run([listener])


def _with_rows_that_fit(options: ServingOptions, generator: Generator) -> ServingOptions:
    """Return the options with fewer rows, if the longest texts in all of them would need more than half the memory."""
    from gpt2tg.generation.footprint import bytes_per_text, device_bytes

    model = generator.model
    fitting = max(1, device_bytes(model.device) // 2 // bytes_per_text(model, model.shape.n_positions))
    if fitting >= options.max_rows:
        return options
    notice(f"--max_rows {options.max_rows}: half of the memory holds {fitting} texts of full length, which is used")
    return replace(options, max_rows=fitting)


def _public_name(checkpoint: Checkpoint) -> str:
    """Return the name of a model for clients: that of its directory without the path, which is no one's business."""
    return Path(checkpoint.name).resolve().name if checkpoint.is_local else checkpoint.name
