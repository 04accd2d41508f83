"""Serve: answer other programs over HTTP, and the page to write on."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2tg.checkpoint.checkpoint import Checkpoint
from gpt2tg.checkpoint.tuned_settings import beside_chosen
from gpt2tg.commands.flags import Flags, flags_of, notice_unused
from gpt2tg.commands.loading import ModelChoice, load_generator, start_loading
from gpt2tg.commands.memory import advise_on_memory
from gpt2tg.errors import UserError
from gpt2tg.io.processes import require_single_process
from gpt2tg.io.streams import notice
from gpt2tg.options import CompareOptions, DecodingOptions, PromptOptions, ServingOptions, TuneOptions, only

if TYPE_CHECKING:  # imports torch, and starlette
    from gpt2tg.generation.generator import Generator
    from gpt2tg.serving.app import Service
    from gpt2tg.serving.desk_paths import Page
    from gpt2tg.serving.models import ServedModel

# Packages that only the server needs.
PACKAGES = ("starlette", "uvicorn", "prometheus_client")

ONLY_WITH_WEB = ("no_browser", "texts_file", "models_folder")


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
        given, options = only(DecodingOptions, dict(flags.values)), flags.pick(ServingOptions)
        if not options.web:
            notice_unused(flags.names, ONLY_WITH_WEB, "it does nothing without --web")
        return cls(options, flags.decoding(), given)


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

    with bind(command.options) as listener, _page(model, command) as page:
        service, options = _service(model, command, page)

        from gpt2tg.serving.browser import open_page

        show = open_page if options.web and not options.no_browser else None
        new_server(service, options, notice, show).run([listener])


def _service(model: ModelChoice, command: ServeCommand, page: Page | None) -> tuple[Service, ServingOptions]:
    """Load the model. Return the service, which alone holds it, and the options with as many rows as fit."""
    loading = start_loading(model)
    tuned = loading.tuned_settings(command.decoding, command.given)
    generator = loading.finish()

    from gpt2tg.serving.app import new_service
    from gpt2tg.serving.models import ServedModel

    options = _with_rows_that_fit(command.options, generator)
    served = ServedModel(_public_name(loading.checkpoint), generator, command.given, tuned)
    return new_service(served, options, page), options


@contextmanager
def _page(model: ModelChoice, command: ServeCommand) -> Iterator[Page | None]:
    """Open the texts of the page to write on, before the model is loaded; None without --web.

    Raises:
        UserError: the file of texts or the folder of models cannot be used.
    """
    options = command.options
    if not options.web:
        yield None
        return

    from gpt2tg.desk.desk import Desk
    from gpt2tg.desk.store import open_store, usual_file
    from gpt2tg.serving.desk_paths import Page
    from gpt2tg.serving.desk_thread import DeskThread
    from gpt2tg.serving.models import OtherModels

    folder = None if options.models_folder is None else Path(options.models_folder).expanduser()
    if folder is not None and not folder.is_dir():
        raise UserError(f"{folder} is no folder: give one that holds models", "models_folder")
    file = usual_file() if options.texts_file is None else Path(options.texts_file).expanduser()
    with closing(DeskThread(Desk(open_store(file)))) as thread:
        yield Page(thread, OtherModels(folder, partial(_load, model, command)))


def _load(model: ModelChoice, command: ServeCommand, checkpoint: Checkpoint) -> ServedModel:
    """Load another model, with the device, the precision and the settings of the first one.

    Raises:
        UserError: it cannot be loaded.
    """
    from gpt2tg.serving.models import ServedModel

    tuned = beside_chosen(checkpoint.tuned_settings, command.decoding, command.given)
    generator = load_generator(checkpoint, model.device, model.precision)
    return ServedModel(_public_name(checkpoint), generator, command.given, tuned)


def _with_rows_that_fit(options: ServingOptions, generator: Generator) -> ServingOptions:
    """Return the options with fewer rows, if the longest texts in all of them would need more than half the memory."""
    from gpt2tg.serving.models import rows_that_fit

    if (fitting := rows_that_fit(options.max_rows, generator)) == options.max_rows:
        return options
    notice(f"--max_rows {options.max_rows}: half of the memory holds {fitting} texts of full length, which is used")
    return replace(options, max_rows=fitting)


def _public_name(checkpoint: Checkpoint) -> str:
    """Return the name of a model for clients: that of its directory without the path, which is no one's business."""
    return Path(checkpoint.name).resolve().name if checkpoint.is_local else checkpoint.name
