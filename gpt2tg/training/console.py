"""Print the messages of a run: log lines on stderr, results on stdout, both from the main process alone.

Log lines go through `logging`, so that a program that imports gpt2tg can redirect or silence them: the logger is
"gpt2tg.training". This module gives it a handler that prints plain text, as a script needs it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import Any

from tqdm import tqdm

from gpt2tg.io.processes import is_main_process


class _Stderr:
    """The current `sys.stderr`, with its errors ignored: a lost line is no reason to end a run.

    A terminal may be closed, a pipe may have lost its reader, a disk may be full, and a service may have no stderr.
    """

    encoding = "utf-8"

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()

    def isatty(self) -> bool:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return sys.stderr.isatty()
        return False

    def fileno(self) -> int:
        return sys.stderr.fileno()


# Any: tqdm expects a text file and uses no more of it than these four methods.
STDERR: Any = _Stderr()


class _LineHandler(logging.Handler):
    """Prints each message as a line on stderr, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        if is_main_process():
            tqdm.write(self.format(record), file=STDERR)


def _training_logger() -> logging.Logger:
    logger = logging.getLogger("gpt2tg.training")
    if not logger.handlers:  # a program that set its own before the import keeps them
        logger.addHandler(_LineHandler())
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger


log = _training_logger()


def print_result(text: str) -> None:
    """Print a line on stdout, from the main process alone. A closed pipe (`| head`) does not end the run."""
    if not is_main_process():
        return
    try:
        print(text, flush=True)
    except BrokenPipeError:  # Python would report it again when it closes stdout
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
