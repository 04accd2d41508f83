"""Ctrl-C, SIGTERM and a closed terminal: how they end a session, with the terminal as it was.

While a session starts, Ctrl-C ends the process where it stands: an exception could be swallowed by a library that is
being imported, or leave the line editor half set up. SIGTERM and SIGHUP do so at any time. Nothing of a session has to
be cleaned up but the terminal: its files are written in one piece.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Literal, NoReturn

try:
    import termios
except ModuleNotFoundError:  # Windows sets its terminal back by itself
    termios = None  # type: ignore[assignment]

# Ends a line editor's paste mode, lets lines wrap, shows the cursor, and ends colours.
PLAIN_SCREEN = b"\x1b[?2004l\x1b[?7h\x1b[?25h\x1b[0m\r\n"

SIGHUP = getattr(signal, "SIGHUP", None)  # none on Windows
LOCAL_MODES = 3


class SessionSignals:
    """Handles signals while it is entered, and sets the terminal back when it is left.

    A signal that was ignored before, as nohup ignores SIGHUP, stays ignored. Outside of the main thread, where Python
    handles no signals, nothing changes.
    """

    def __init__(self) -> None:
        self.on_ctrl_c: Literal["end", "raise", "ignore"] = "end"
        """What Ctrl-C does: end the process, raise KeyboardInterrupt, or nothing, where a line editor is busy with its
        own keys."""
        self.has_line_editor = False
        self._modes = _modes_of_stdin()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> SessionSignals:
        handlers = {signal.SIGINT: self._on_ctrl_c, signal.SIGTERM: self._on_end, SIGHUP: self._on_end}
        for number, handler in handlers.items():
            with contextlib.suppress(ValueError):  # another thread than the main one
                if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._is_hung_up():  # nobody is left who could read an error, and a later write would be one
            self.end(1 if SIGHUP is None else SIGHUP)
        self._set_back()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """While texts are written Ctrl-C stops them, and keys that are typed wait for the next line, unseen."""
        self.on_ctrl_c = "raise"
        try:
            with self._unechoed():
                yield
        finally:
            self.on_ctrl_c = "ignore"

    def end(self, number: int) -> NoReturn:
        """End the process at once, as a shell says it of this signal."""
        self._set_back()
        if self.has_line_editor:
            _write(1, PLAIN_SCREEN)
        if number != SIGHUP:
            _write(2, b"interrupted\n" if number == signal.SIGINT else b"ended by SIGTERM\n")
        os._exit(128 + number)

    def _on_ctrl_c(self, number: int, frame: FrameType | None) -> None:
        if self.on_ctrl_c == "end":
            self.end(number)
        if self.on_ctrl_c == "raise":
            raise KeyboardInterrupt

    def _on_end(self, number: int, frame: FrameType | None) -> None:
        self.end(number)

    def _is_hung_up(self) -> bool:
        """Whether the terminal that was there is gone."""
        return self._modes is not None and _modes_of_stdin() is None

    @contextlib.contextmanager
    def _unechoed(self) -> Iterator[None]:
        before = _modes_of_stdin()
        if before is None:
            yield
            return
        silent = [*before]
        silent[LOCAL_MODES] &= ~termios.ECHO
        try:
            _set_modes(silent)
            yield
        finally:
            _set_modes(before)

    def _set_back(self) -> None:
        if self._modes is not None:
            _set_modes(self._modes)


def _modes_of_stdin() -> list[Any] | None:
    """None where stdin is no terminal, or none any more."""
    if termios is None:
        return None
    try:
        return termios.tcgetattr(sys.stdin.fileno())
    except (termios.error, OSError, ValueError, AttributeError):  # closed, or replaced by something without a file
        return None


def _set_modes(modes: list[Any]) -> None:
    """Nothing happens to a terminal that is gone. One that another program has taken over would stop this one."""
    stopped = signal.SIGTTOU
    handler = None
    with contextlib.suppress(ValueError):  # another thread than the main one
        handler = signal.signal(stopped, signal.SIG_IGN)
    with contextlib.suppress(termios.error, OSError, ValueError, AttributeError):
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, modes)
    if handler is not None:
        signal.signal(stopped, handler)


def _write(file: int, text: bytes) -> None:
    """Past Python's buffers, which the signal may have found in use; not where nobody reads, which would never end."""
    with contextlib.suppress(OSError, ValueError):
        if select.select([], [file], [], 0)[1]:
            os.write(file, text)
