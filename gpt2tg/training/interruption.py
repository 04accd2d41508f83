"""Ctrl-C, SIGTERM and their like: a request to save and end while training, and an end at once before and after."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator

from gpt2tg.errors import Interrupted

# Sent again by someone who does not want to wait: the second one ends a run at once.
URGENT = (signal.SIGINT, signal.SIGTERM)

# A terminal that closes, once from the system and once from its shell; the warning of a batch system (Slurm's --signal)
# before it ends a job; Ctrl-Break, and a console that closes, on Windows.
WARNINGS = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGBREAK") if hasattr(signal, name))

# A terminal sends Ctrl-C to all, and torchrun sends it on to the processes it started: within so many seconds that is
# one and the same.
LAUNCHER_ECHO = 2.0

# How long several processes train before they ask each other for signals, and how many steps at most.
SECONDS_BETWEEN, MOST_STEPS_BETWEEN = 1.0, 50


class Interruption:
    """While it is entered, the first signal is remembered as long as `training` is set. A second Ctrl-C or SIGTERM
    quits at once.

    Outside of the main thread, where Python handles no signals, nothing changes. Nor does it for a warning that is
    ignored, as SIGHUP is under nohup, or that the program around us handles itself.

    Attributes:
        is_saved: what a signal ends outside of training can be resumed.
    """

    def __init__(self) -> None:
        self.training = False
        self.is_saved = False
        self.signal: int | None = None
        self._urged: float | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            numbers = (*URGENT, *filter(_is_free, WARNINGS))
            self._handlers = {number: signal.signal(number, self._on_signal) for number in numbers}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self.signal is not None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self.training:
            raise Interrupted("interrupted", number, self.is_saved)
        if number in URGENT:
            now, urged = time.monotonic(), self._urged
            self._urged = now if urged is None else urged
            if urged is not None and not (now - urged < LAUNCHER_ECHO and "LOCAL_RANK" in os.environ):
                _tell("ended at once: what was not yet saved is lost")
                os._exit(128 + number)
        if self.signal is not None:
            return
        self.signal = number
        is_alone = os.environ.get("WORLD_SIZE", "1") == "1"
        when = (
            "this step is finished and saved first"
            if is_alone
            else "within about a second all processes end a step and save"
        )
        _tell(f"interrupted: {when}; a second Ctrl-C or SIGTERM ends the run at once")


def _is_free(number: int) -> bool:
    """Whether nobody but us handles a signal, or wants it ignored."""
    handler = signal.getsignal(number)
    return handler is signal.SIG_DFL or isinstance(getattr(handler, "__self__", None), Interruption)


class Agreement:
    """What several processes know together: whether a signal has come to one of them.

    To ask the others is to wait for them. After a step that is done about once a second: how many steps that takes is
    decided from seconds that were added up over all processes, which gives each of them the same bits. So all ask after
    the same steps; would one ask that the others do not, it would wait for ever.
    """

    def __init__(self, accelerator: Accelerator, interruption: Interruption) -> None:
        self._accelerator = accelerator
        self._interruption = interruption
        self._is_reached = False
        self._last: tuple[int, float] | None = None  # the step after which was asked, and when
        self._due = 0

    def is_interrupted(self) -> bool:
        """Ask now. All processes have to."""
        return bool(self._interruption) if self._accelerator.num_processes == 1 else self._ask(0.0)[0]

    def is_interrupted_at(self, step: int) -> bool:
        """Ask after this step, where it is time to. All processes have to, after the same steps."""
        if self._accelerator.num_processes == 1:
            return bool(self._interruption)
        if self._is_reached or step < self._due:
            return self._is_reached
        now = time.monotonic()
        before, then = self._last or (step, now)
        is_reached, seconds = self._ask(now - then)
        self._last = step, now
        steps = (step - before) * SECONDS_BETWEEN / max(seconds, 1e-9)
        self._due = step + min(max(int(steps), 1), MOST_STEPS_BETWEEN)
        return is_reached

    def _ask(self, seconds: float) -> tuple[bool, float]:
        """Whether a signal has come to any process, and the mean of their seconds."""
        mine = torch.tensor([float(bool(self._interruption)), seconds], device=self._accelerator.device)
        signals, seconds = self._accelerator.reduce(mine, reduction="mean").tolist()
        self._is_reached = self._is_reached or signals > 0
        return self._is_reached, seconds


def _tell(text: str) -> None:
    """A line on stderr, past Python's buffer: the signal may have come in the middle of a print."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.write(sys.__stderr__.fileno(), f"\n{text}\n".encode())
