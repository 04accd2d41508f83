"""stdin, stdout and stderr in any locale: UTF-8, and robust against streams that are closed, full or broken pipes."""

from __future__ import annotations

import contextlib
import os
import sys

from gpt2tg.errors import RunError
from gpt2tg.io.processes import local_number


def notice(text: str, from_any_process: bool = False) -> None:
    """Print a line on stderr, by default in the first process of a machine only. stdout carries results alone.

    The line is written in one piece: `print` writes the line break separately, and another process may come between.
    """
    if from_any_process or local_number() == 0:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it, which is no reason to stop
            sys.stderr.write(f"{printable(text)}\n")
            sys.stderr.flush()


def write_out(text: str = "") -> None:
    """Write to stdout and flush it.

    Raises:
        RunError: the disk is full, or the device refuses it.
        BrokenPipeError: the reader has closed the pipe.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RunError(f"cannot write to standard output: {error.strerror}") from None


def printable(text: str) -> str:
    """Return a text that can be printed as UTF-8; bytes that Python keeps as surrogates in file names are decoded."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode("utf-8")


def speak_utf8() -> None:
    """Let all streams read and write UTF-8 in any locale: an accent must not raise an encoding error."""
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "replace"), (sys.stdin, "surrogateescape")):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors=errors)


def open_closed_streams() -> None:
    """Connect streams that the shell has closed (`>&-`) to the null device.

    Otherwise a file that is opened later gets the stream's number, and libraries print into it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # each opens with the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # until the process ends


def silence_broken_streams() -> None:
    """Connect a broken stream to the null device: Python would raise again when it closes the stream."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
