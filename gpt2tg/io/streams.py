"""stdin, stdout and stderr as a script finds them: in any locale, closed, full, or with nobody at the other end."""

from __future__ import annotations

import contextlib
import os
import sys

from gpt2tg.errors import RunError


def notice(text: str) -> None:
    """One line of talk, on stderr: stdout carries the product alone. Of several processes on a machine one speaks.

    Written in one piece: `print` writes the end of the line on its own, and another process may come between.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":
        with contextlib.suppress(OSError, ValueError):  # nobody listens, which is no reason to end
            sys.stderr.write(f"{printable(text)}\n")
            sys.stderr.flush()


def write_out(text: str = "") -> None:
    """Write to stdout and show at once, with what was printed before.

    Raises:
        RunError: it takes no more.
        BrokenPipeError: who reads it has seen enough.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RunError(f"cannot write to standard output: {error.strerror}") from None


def printable(text: str) -> str:
    """A text with what stands for single bytes read as UTF-8, as in the names of files where the locale is another."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode("utf-8")


def speak_utf8() -> None:
    """Read and write UTF-8 whatever the locale: a story with an accent must not end in an encoding error."""
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "replace"), (sys.stdin, "surrogateescape")):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors=errors)


def open_closed_streams() -> None:
    """Connect a stream that the shell closed (`>&-`) to the null device.

    A file opened later would get the number of the stream, and what libraries print would end up in it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # each takes the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # until the process ends


def silence_broken_streams() -> None:
    """Connect a stream that takes no more to the null device: Python would complain again on closing it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
