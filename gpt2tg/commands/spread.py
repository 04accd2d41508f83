"""Commands that several processes run together: what they refuse, and what the processes besides the first do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gpt2tg.commands.loading import ModelChoice, start_loading
from gpt2tg.commands.memory import advise_on_memory
from gpt2tg.errors import ProcessError, RunError, UserError
from gpt2tg.io.processes import is_main_process, process_count, process_number

if TYPE_CHECKING:  # imports torch
    from gpt2tg.generation.generator import Generator


def check_device_of_all(model: ModelChoice) -> None:
    """Refuse a GPU by number for several processes, which would share it.

    Raises:
        UserError: --device names one.
    """
    if process_count() > 1 and model.device.startswith("cuda:"):
        raise UserError(
            f"{model.device} is for a single process, and there are {process_count()}: use cuda, and choose GPUs with "
            "CUDA_VISIBLE_DEVICES",
            "device",
        )


@contextmanager
def helping(model: ModelChoice, on_memory: str) -> Iterator[Generator]:
    """Yield a generator in a process that is not the first, whose errors then name the process.

    Errors before that are those of the first process too, which prints them.

    Args:
        on_memory: the advice when memory runs out in the block.

    Raises:
        ProcessError: the model cannot be loaded, or the block failed.
    """
    loading = start_loading(model)
    try:
        generator = loading.finish()
        compute_alike(generator)
        with advise_on_memory(on_memory):
            yield generator
    except Exception as error:
        raise ProcessError(f"process {process_number()}: {error}") from error


def compute_alike(generator: Generator) -> None:
    """Check that all processes compute in the same way, so that a text does not depend on the process. Each calls this.

    Raises:
        RunError: this process computes on another kind of device than the first, or in another precision.
    """
    if process_count() == 1:
        return

    from gpt2tg.batch.spread import share

    ours = f"on {generator.model.device.type} in {generator.model.precision}"
    theirs = share(ours)
    if not is_main_process() and ours != theirs:
        raise RunError(f"computes {ours}, the first process {theirs}: set --device and --precision")
