"""The processes that torchrun or accelerate started side by side: what one of them decides, the others hear from it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from gpt2tg.errors import RunError, UserError

Found = TypeVar("Found")


def is_main_process() -> bool:
    """Whether this is the process that speaks and writes."""
    return os.environ.get("RANK", "0") == "0"


def by_main_process(work: Callable[[], Found]) -> Found:
    """Have the main process do it, and give all what came of it. What it refuses, all refuse.

    All processes have to call it, once they know each other: once there are TrainingArguments.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return work()
    import torch.distributed

    if not torch.distributed.is_initialized():
        return work()
    outcome: list[tuple[Found | None, UserError | RunError | None]] = [(None, None)]
    failure: BaseException | None = None
    if is_main_process():
        try:
            outcome = [(work(), None)]
        except (UserError, RunError) as error:
            outcome = [(None, error)]
        except OSError as error:
            outcome = [(None, RunError(str(error)))]
            failure = error
    torch.distributed.broadcast_object_list(outcome, src=0)
    found, error = outcome[0]
    if failure is not None:
        raise failure
    if error is not None:
        raise error
    return found  # type: ignore[return-value]
