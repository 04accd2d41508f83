"""Advice for a command that ran out of memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gpt2tg.errors import RunError
from gpt2tg.io.memory import is_out_of_memory


@contextmanager
def advise_on_memory(advice: str) -> Iterator[None]:
    """Replace the error of a device whose memory is used up by one line with advice. Also decorates functions.

    Args:
        advice: what the user can change; follows "out of memory: ".

    Raises:
        RunError: memory ran out.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(f"out of memory: {advice}") from error
