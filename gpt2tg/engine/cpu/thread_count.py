"""How many threads the kernels use while other programs compute on the same cores.

If another program takes turns with a thread on a core, the other threads do its work meanwhile (team.h). But a forward
pass ends only when that thread has its core again, up to milliseconds later, so short forward passes are faster with
fewer threads. Their number changes no result.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

# Threads that wait spin, so that n threads take n seconds of processor time a second. If so much of one second is
# missing, a core has other work.
MISSING = 0.3

# Forward passes are judged together until they have taken this long, in seconds; two such windows in a row decide.
WINDOW, WINDOWS = 0.02, 2

# Only forward passes that take less than so many seconds use fewer threads, as measured with gpt2's shape and smaller
# ones beside a busy program on one of two cores. A small model like gpt2-tiny reads so many tokens in that time; longer
# passes, such as those of prompts, are not judged.
SHORT_SECONDS, MOST_TOKENS = 0.012, 16

# After so many seconds with fewer threads, the next window has one more again. Doubled each time this was in vain.
FIRST_PATIENCE, MOST_PATIENCE = 0.25, 4.0


class ThreadCount:
    """Chooses the threads of each forward pass by the processor time that the last ones got."""

    def __init__(self, most: Callable[[], int] = torch.get_num_threads) -> None:
        """
        Args:
            most: returns the number of threads that may be used.
        """
        self._most = most
        self._left_out = 0  # threads that are not used
        self._patience = FIRST_PATIENCE
        self._reduced_at = self._hold_until = 0.0
        self._slow_windows = self._long_windows = 0
        self._wall = self._missing = 0.0  # of the current window, in seconds
        self._passes = 0
        # With this policy, threads sleep between forward passes: their processor time tells less.
        self._is_on = os.environ.get("OMP_WAIT_POLICY", "").lower() != "passive"

    @contextmanager
    def measured(self, tokens: int) -> Iterator[int]:
        """Measure the forward pass in the block, which reads so many tokens. Yields how many threads it is to use."""
        if not self._is_on or tokens > MOST_TOKENS:
            yield self._most()
            return
        threads = max(1, self._most() - self._left_out)
        wall, cpu = time.perf_counter(), time.process_time()
        yield threads
        self._note(threads, time.perf_counter() - wall, time.process_time() - cpu)

    def _note(self, threads: int, wall: float, cpu: float) -> None:
        """Judge the window if it is long enough.

        Args:
            wall, cpu: seconds of a forward pass, and of processor time of all threads in it.
        """
        self._wall += wall
        self._missing += threads * wall - cpu
        self._passes += 1
        if self._wall < WINDOW:
            return
        is_long = self._wall >= SHORT_SECONDS * self._passes
        is_slow = threads > 1 and self._missing > MISSING * self._wall
        self._wall = self._missing = 0.0
        self._passes = 0
        now = time.perf_counter()
        self._long_windows = self._long_windows + 1 if is_long else 0
        if is_long:
            self._slow_windows = 0
            if self._left_out and self._long_windows >= WINDOWS:
                self._left_out, self._patience = 0, FIRST_PATIENCE
                self._hold_until = now + MOST_PATIENCE  # fewer threads may have made them long
        elif is_slow:
            self._slow_windows += 1
            if self._slow_windows >= WINDOWS and now >= self._hold_until:
                self._left_out += 1
                self._reduced_at = now
        else:
            self._slow_windows = 0
            self._try_one_more(now)

    def _try_one_more(self, now: float) -> None:
        """Use a thread more if fewer have been used for long enough."""
        if not self._left_out:
            self._patience = FIRST_PATIENCE
        elif now - self._reduced_at >= self._patience:
            self._left_out -= 1
            self._patience = min(2 * self._patience, MOST_PATIENCE)
            self._slow_windows = WINDOWS - 1  # a single slow window suffices now
