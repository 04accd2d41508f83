"""Measure the time spent training and the tokens trained on per second."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Counts the seconds spent training, without evaluation, saving and sampling. A resumed run continues the count."""

    def __init__(self, tokens_per_step: int) -> None:
        """Set up a stopped stopwatch.

        Args:
            tokens_per_step: tokens of a step whose blocks are all full.
        """
        self.tokens_per_step = tokens_per_step
        self._before = 0.0  # seconds up to the last pause
        self._since: float | None = None  # when the last pause ended
        self._last_log = (0.0, 0)  # seconds and tokens
        self._start = (0.0, 0)  # seconds and step

    def start(self, seconds: float, step: int, tokens: int) -> None:
        """Start at this step, after the given seconds and tokens of training."""
        self._before, self._since = seconds, time.monotonic()
        self._last_log, self._start = (seconds, tokens), (seconds, step)

    @property
    def seconds(self) -> float:
        """Seconds spent training so far."""
        return self._before + (0.0 if self._since is None else time.monotonic() - self._since)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Pause while the block runs."""
        self._before, self._since = self.seconds, None
        try:
            yield
        finally:
            self._since = time.monotonic()

    def tokens_per_second(self, tokens: int) -> float:
        """Return the speed since the last call, given the number of tokens trained on in all."""
        (then, before), self._last_log = self._last_log, (self.seconds, tokens)
        return (tokens - before) / max(self._last_log[0] - then, 1e-9)

    def time_left(self, step: int, last_step: int) -> str:
        """Return the expected time to the last step, as `format_duration` writes it."""
        then, before = self._start
        return format_duration((self.seconds - then) / max(step - before, 1) * (last_step - step))


def format_duration(seconds: float) -> str:
    """Return seconds in the form 0:05, 12:30 or 3:20:00."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
