"""Which of several processes this is, as torchrun and accelerate launch tell it in environment variables."""

from __future__ import annotations

import os

from gpt2tg.errors import UserError


def process_count() -> int:
    """Return how many processes the launcher started, on all machines together; 1 without a launcher."""
    return _number("WORLD_SIZE", 1)


def process_number() -> int:
    """Return the number of this process among all, from 0."""
    return _number("RANK", 0)


def local_count() -> int:
    """Return how many of the processes run on this machine."""
    return _number("LOCAL_WORLD_SIZE", process_count())


def local_number() -> int:
    """Return the number of this process among those on this machine, from 0."""
    return _number("LOCAL_RANK", 0)


def is_main_process() -> bool:
    """Whether this is the process that prints, reads the input and writes files."""
    return process_number() == 0


def require_single_process(what: str, option: str | None = None) -> None:
    """Refuse what only one process can do.

    Args:
        what: completes the sentence that begins with the option.

    Raises:
        UserError: there are several processes.
    """
    if process_count() > 1:
        raise UserError(f"{what} a single process: start it without torchrun or accelerate launch", option)


def _number(variable: str, otherwise: int) -> int:
    value = os.environ.get(variable, "")
    return int(value) if value.isdecimal() else otherwise
