"""End a session on Ctrl-C, SIGTERM or a closed terminal, with the terminal restored.

While a session starts, Ctrl-C ends the process immediately: a library that is being imported could swallow an
exception, or the line editor could be left half set up. SIGTERM and SIGHUP end it immediately at any time. Only the
terminal has to be restored: files are written atomically.
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
except ModuleNotFoundError:  # Windows restores its terminal by itself
    termios = None  # type: ignore[assignment]

# Ends bracketed paste, turns on line wrapping, shows the cursor, and resets colours.
PLAIN_SCREEN = b"\x1b[?2004l\x1b[?7h\x1b[?25h\x1b[0m\r\n"

SIGHUP = getattr(signal, "SIGHUP", None)  # none on Windows
LOCAL_MODES = 3


class SessionSignals:
    """Handle signals inside a `with` block, and restore the terminal at its end.

    A signal that was ignored before stays ignored, as SIGHUP under nohup. Outside the main thread, where Python
    handles no signals, nothing changes.
    """

    def __init__(self) -> None:
        self.on_ctrl_c: Literal["end", "raise", "ignore"] = "end"
        """The effect of Ctrl-C: end the process, raise KeyboardInterrupt, or none while a line editor reads keys."""
        self.has_line_editor = False
        self._modes = _modes_of_stdin()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> SessionSignals:
        handlers = {signal.SIGINT: self._on_ctrl_c, signal.SIGTERM: self._on_end, SIGHUP: self._on_end}
        for number, handler in handlers.items():
            with contextlib.suppress(ValueError):  # not the main thread
                if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._is_hung_up():  # an error could not be read, and printing it would raise another one
            self.end(1 if SIGHUP is None else SIGHUP)
        self._restore_terminal()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Let Ctrl-C raise KeyboardInterrupt inside the block, and do not echo the keys that are typed meanwhile."""
        self.on_ctrl_c = "raise"
        try:
            with self._unechoed():
                yield
        finally:
            self.on_ctrl_c = "ignore"

    def end(self, number: int) -> NoReturn:
        """End the process immediately, with the exit code that shells report for this signal."""
        self._restore_terminal()
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
        """Whether the terminal of this session has been closed."""
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

    def _restore_terminal(self) -> None:
        if self._modes is not None:
            _set_modes(self._modes)


def _modes_of_stdin() -> list[Any] | None:
    """Return the modes of the terminal; None if stdin is no terminal, or its terminal was closed."""
    if termios is None:
        return None
    try:
        return termios.tcgetattr(sys.stdin.fileno())
    except (termios.error, OSError, ValueError, AttributeError):  # closed, or replaced by an object without a file
        return None


def _set_modes(modes: list[Any]) -> None:
    """Set the modes of the terminal, if it still exists.

    SIGTTOU is ignored meanwhile: it would stop this process if another program has taken over the terminal.
    """
    stopped = signal.SIGTTOU
    handler = None
    with contextlib.suppress(ValueError):  # not the main thread
        handler = signal.signal(stopped, signal.SIG_IGN)
    with contextlib.suppress(termios.error, OSError, ValueError, AttributeError):
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, modes)
    if handler is not None:
        signal.signal(stopped, handler)


def _write(file: int, text: bytes) -> None:
    """Write to a descriptor, but not if that would block.

    Python's own streams are not used: the signal may have interrupted a write to them.
    """
    with contextlib.suppress(OSError, ValueError):
        if select.select([], [file], [], 0)[1]:
            os.write(file, text)
