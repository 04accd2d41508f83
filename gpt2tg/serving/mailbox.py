"""Hands reports of the scheduler's thread to a coroutine."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from gpt2tg.serving.jobs import Finished, Progress


class Mailbox:
    """Reports in the order of their arrival. A reader that is slow gets several at once."""

    def __init__(self) -> None:
        """Make an empty mailbox for the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._reports: deque[Progress | Finished] = deque()
        self._is_told = False

    def put(self, report: Progress | Finished) -> None:
        """Add a report, from any thread."""
        self._reports.append(report)
        if not self._is_told:
            self._is_told = True
            with contextlib.suppress(RuntimeError):  # the event loop is closed, and nobody reads any more
                self._loop.call_soon_threadsafe(self._arrived.set)

    async def bundles(self) -> AsyncIterator[list[Progress | Finished]]:
        """Yield the reports, all that have arrived at a time, up to `Finished`."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            self._is_told = False  # before the mailbox is emptied: a report that comes now is found in any case
            bundle = [self._reports.popleft() for _ in range(len(self._reports))]
            if bundle:
                yield bundle
                if isinstance(bundle[-1], Finished):
                    return
