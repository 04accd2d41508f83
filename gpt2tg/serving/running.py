"""Hand work to the scheduler's thread, and wait for it as long as the client does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

from gpt2tg.errors import RunError
from gpt2tg.generation.generator import Generator
from gpt2tg.generation.requests import RequestBatch
from gpt2tg.serving.errors import ApiError
from gpt2tg.serving.jobs import Finished, Job, Progress
from gpt2tg.serving.mailbox import Mailbox
from gpt2tg.serving.metrics import Metrics, Stopwatch
from gpt2tg.serving.scheduler import FullError, Scheduler, StoppedError, busy_error

# The status of an answer that nobody receives, as some servers log it.
CLIENT_GONE = 499

WaitUntilGone = Callable[[], Awaitable[None]]


class GoneError(Exception):
    """The client went away."""


class Runner:
    """Runs jobs and calls for requests."""

    def __init__(self, scheduler: Scheduler, metrics: Metrics, time_limit: float) -> None:
        """
        Args:
            time_limit: seconds after which a call ends.
        """
        self._scheduler, self._metrics, self._limit = scheduler, metrics, time_limit

    def start(self, generator: Generator, batch: RequestBatch, in_pieces: bool, alternatives: int | None) -> Run:
        """Hand over a job.

        Args:
            alternatives: the number of most probable tokens to report for each token; None to report no tokens.

        Raises:
            ApiError: the server is busy, or shuts down.
        """
        mailbox = Mailbox()
        job = Job(generator, batch, in_pieces, alternatives, mailbox.put)
        run = Run(job, mailbox, self._metrics)
        try:
            self._scheduler.submit(job)
        except (FullError, StoppedError) as error:
            raise as_api_error(error) from None
        return run

    async def call(self, parts: Iterator[Sequence[Any]], wait_until_gone: WaitUntilGone) -> list[Any]:
        """Run work between the steps of the texts, and return what all its parts yield.

        Raises:
            ApiError: the server is busy, shuts down, or failed.
            GoneError: the client went away.
        """
        watcher = asyncio.ensure_future(wait_until_gone())
        try:
            call = asyncio.wrap_future(self._scheduler.call(parts))
            try:
                ends: set[asyncio.Future[Any]] = {call, watcher}
                await asyncio.wait(ends, timeout=self._limit, return_when=asyncio.FIRST_COMPLETED)
                if not call.done():
                    raise GoneError if watcher.done() else RunError(f"it took more than {self._limit:g} seconds")
                return call.result()
            finally:
                call.cancel()
        except Exception as error:
            raise as_api_error(error) from error
        finally:
            watcher.cancel()


class Run:
    """A job that runs for a request."""

    def __init__(self, job: Job, mailbox: Mailbox, metrics: Metrics) -> None:
        self._job, self._mailbox, self._metrics, self._watch = job, mailbox, metrics, Stopwatch(metrics)

    def cancel(self) -> None:
        """End the job, if it still runs."""
        self._job.is_cancelled = True

    async def reports(self, wait_until_gone: WaitUntilGone) -> AsyncIterator[list[Progress | Finished]]:
        """Yield the reports of the job, which is cancelled when the client goes away.

        Raises:
            ApiError: the job failed, or was cut.
            GoneError: the client went away.
        """
        watcher = asyncio.ensure_future(_tell_when_gone(wait_until_gone, self._mailbox))
        try:
            async for bundle in self._mailbox.bundles():
                if isinstance(bundle[-1], Finished) and bundle[-1].error is not None:
                    raise as_api_error(bundle[-1].error)
                if self._job.in_pieces:
                    self._watch.note_piece()
                yield bundle
            self._watch.note_end()
            self._metrics.prompt_tokens.inc(sum(len(request.ids) for request in self._job.batch.requests))
            self._metrics.shared_tokens.inc(self._job.shared)
        finally:
            self.cancel()
            watcher.cancel()


async def _tell_when_gone(wait_until_gone: WaitUntilGone, mailbox: Mailbox) -> None:
    await wait_until_gone()
    mailbox.put(Finished(GoneError()))


def as_api_error(error: Exception) -> Exception:
    """Return what a client is told about a failure."""
    if isinstance(error, (GoneError, ApiError)):
        return error
    if isinstance(error, (FullError, StoppedError)):
        return busy_error(error)
    message = str(error) if isinstance(error, RunError) else f"unexpected {type(error).__name__}: {error}"
    return ApiError(500, message, code="failed")
