"""Coordinate the processes that torchrun or accelerate started: the main one decides, the others follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from gpt2tg.errors import RunError, UserError
from gpt2tg.io.processes import is_main_process, process_count

Result = TypeVar("Result")


def run_on_main_process(work: Callable[[], Result]) -> Result:
    """Call a function in the main process alone, and return its result in every process.

    All processes must call this, after the first TrainingArguments were made: they set up the process group.

    Raises:
        UserError, RunError: in every process, if the function raises one in the main process.
        OSError: in the main process, if the function raises one; the others raise a RunError.
    """
    if process_count() == 1:
        return work()
    import torch.distributed

    if not torch.distributed.is_initialized():
        return work()
    outcome: list[tuple[Result | None, UserError | RunError | None]] = [(None, None)]
    local_failure: OSError | None = None
    if is_main_process():
        try:
            outcome = [(work(), None)]
        except (UserError, RunError) as error:
            outcome = [(None, error)]
        except OSError as error:
            outcome = [(None, RunError(str(error)))]
            local_failure = error
    torch.distributed.broadcast_object_list(outcome, src=0)
    result, failure = outcome[0]
    if local_failure is not None:
        raise local_failure
    if failure is not None:
        raise failure
    return result  # type: ignore[return-value]  # without an error this is what `work` returned


def gather(value: Result) -> list[Result]:
    """Return the values of all processes, by process number. All must call this."""
    if process_count() == 1:
        return [value]
    import torch.distributed

    if not torch.distributed.is_initialized():
        return [value]
    values: list[Result | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values  # type: ignore[return-value]  # every process has set its own


def gather_on_main_process(value: Result) -> list[Result]:
    """Return the values of all processes in the main process, and nothing in the others. All must call this."""
    values = gather(value)
    return values if is_main_process() else []
