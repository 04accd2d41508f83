"""Handle Ctrl-C, SIGTERM and their like: while training they save and stop, before and after they stop at once."""

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
from gpt2tg.io.processes import local_number, process_count

# A second one of these ends a run at once.
URGENT = (signal.SIGINT, signal.SIGTERM)

# SIGHUP: a terminal closes; the system sends it, and the shell once more. SIGUSR1: a batch system warns before it ends
# a job (Slurm's --signal). SIGBREAK: Ctrl-Break or a closing console on Windows.
WARNINGS = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGBREAK") if hasattr(signal, name))

# A terminal sends Ctrl-C to all processes, and torchrun forwards it to those it started. A second signal within this
# many seconds is that echo.
LAUNCHER_ECHO = 2.0

# Several processes ask each other for signals about this often, but at least every so many steps.
SECONDS_BETWEEN, MOST_STEPS_BETWEEN = 1.0, 50


class Interruption:
    """A context manager that remembers the first signal while `training` is set, and raises on it otherwise.

    A second Ctrl-C or SIGTERM ends the process at once. Nothing changes outside of the main thread, where Python
    handles no signals, nor for warnings that are ignored (SIGHUP under nohup) or that the calling program handles.

    Attributes:
        training: whether a signal waits until the step is saved.
        is_saved: whether a run that a signal ends outside of training can be resumed.
        signal: the number of the first signal; None before it.
    """

    def __init__(self) -> None:
        self.training = False
        self.is_saved = False
        self.signal: int | None = None
        self._first_urgent: float | None = None  # when it came
        self._earlier_handlers: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            numbers = (*URGENT, *filter(_is_unhandled, WARNINGS))
            self._earlier_handlers = {number: signal.signal(number, self._on_signal) for number in numbers}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for number, handler in self._earlier_handlers.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self.signal is not None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self.training:
            raise Interrupted("interrupted", number, self.is_saved)
        if number in URGENT:
            self._quit_if_second(number)
        if self.signal is not None:
            return
        self.signal = number
        is_single = process_count() == 1
        when = (
            "this step is finished and saved first"
            if is_single
            else "within about a second all processes finish a step and save"
        )
        _print_from_handler(f"interrupted: {when}; a second Ctrl-C or SIGTERM ends the run at once")

    def _quit_if_second(self, number: int) -> None:
        now, first = time.monotonic(), self._first_urgent
        if first is None:
            self._first_urgent = now
        elif not (now - first < LAUNCHER_ECHO and "LOCAL_RANK" in os.environ):
            _print_from_handler("ended at once: what was not yet saved is lost")
            os._exit(128 + number)


def _is_unhandled(number: int) -> bool:
    """Whether a signal has its default action, or one of our handlers."""
    handler = signal.getsignal(number)
    return handler is signal.SIG_DFL or isinstance(getattr(handler, "__self__", None), Interruption)


class SignalConsensus:
    """Lets all processes learn after the same step that one of them received a signal.

    Asking is an all-reduce: every process waits for the others. `is_interrupted_at` therefore asks about once a second.
    The number of steps until the next question follows from seconds averaged over all processes, so that each computes
    the same number from the same bits. If one process asked after a step at which the others do not, it would wait
    forever. accelerate's `check_trigger` shares no such number, and would wait for the others after every step.
    """

    def __init__(self, accelerator: Accelerator, interruption: Interruption) -> None:
        self._accelerator = accelerator
        self._interruption = interruption
        self._is_reached = False
        self._last_asked: tuple[int, float] | None = None  # step and time
        self._next_step = 0  # the step after which to ask again
        self._started = time.monotonic()
        self._agreed_seconds = 0.0

    @property
    def seconds(self) -> float:
        """The time since the start, about a second old with several processes: all have the same number."""
        is_alone = self._accelerator.num_processes == 1
        return time.monotonic() - self._started if is_alone else self._agreed_seconds

    def is_interrupted(self) -> bool:
        """Whether any process received a signal. All processes must call this together."""
        return bool(self._interruption) if self._accelerator.num_processes == 1 else self._ask(0.0)[0]

    def is_interrupted_at(self, step: int) -> bool:
        """Whether any process is known to have received a signal. All processes must call this after each step."""
        if self._accelerator.num_processes == 1:
            return bool(self._interruption)
        if self._is_reached or step < self._next_step:
            return self._is_reached
        now = time.monotonic()
        last_step, last_time = self._last_asked or (step, now)
        is_reached, seconds = self._ask(now - last_time)
        self._last_asked = step, now
        steps = (step - last_step) * SECONDS_BETWEEN / max(seconds, 1e-9)
        self._next_step = step + min(max(int(steps), 1), MOST_STEPS_BETWEEN)
        return is_reached

    def _ask(self, seconds: float) -> tuple[bool, float]:
        """Return whether any process received a signal, and the mean of their `seconds`."""
        mine = torch.tensor([float(bool(self._interruption)), seconds], device=self._accelerator.device)
        signals, mean_seconds = self._accelerator.reduce(mine, reduction="mean").tolist()
        self._is_reached = self._is_reached or signals > 0
        self._agreed_seconds += mean_seconds
        return self._is_reached, mean_seconds


def _print_from_handler(text: str) -> None:
    """Print a line on stderr past Python's buffer: the signal may have interrupted a print."""
    if local_number() != 0:
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.write(sys.__stderr__.fileno(), f"\n{text}\n".encode())  # type: ignore[union-attr]  # None is suppressed too
