"""Ctrl-C and SIGTERM: a request to save and end while training, and an end at once before and after."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from gpt2tg.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)

# A terminal sends Ctrl-C to all, and torchrun sends it on to the processes it started: within so many seconds that is
# one and the same.
LAUNCHER_ECHO = 2.0


class Interruption:
    """While it is entered, the first signal is remembered as long as `training` is set; a second one quits at once.

    Outside of the main thread, where Python handles no signals, nothing changes.
    """

    def __init__(self) -> None:
        self.training = False
        self.signal: int | None = None
        self._when = 0.0
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self.signal is not None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self.training:
            raise Interrupted("interrupted", number)
        if self.signal is not None:
            if time.monotonic() - self._when < LAUNCHER_ECHO and "LOCAL_RANK" in os.environ:
                return
            _tell("ended at once: what was not yet saved is lost")
            os._exit(128 + number)
        self.signal, self._when = number, time.monotonic()
        _tell("interrupted: this step is finished and saved first; a second signal ends the run at once")


def _tell(text: str) -> None:
    """A line on stderr, past Python's buffer: the signal may have come in the middle of a print."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.write(sys.__stderr__.fileno(), f"\n{text}\n".encode())
