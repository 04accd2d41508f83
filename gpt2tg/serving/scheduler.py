"""The thread that computes: one step of the live batch after the other, and between them what runs on its own.

All texts are computed in this one thread. Other threads hand it work and get reports.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from gpt2tg.errors import RunError, one_line
from gpt2tg.generation.generator import Generator
from gpt2tg.generation.live_batch import LiveBatch, LiveText
from gpt2tg.io.streams import notice
from gpt2tg.serving.errors import ApiError
from gpt2tg.serving.jobs import Finished, Job
from gpt2tg.serving.metrics import Metrics

# Seconds after which a client that was refused because the server is busy may try again.
RETRY_AFTER = "1"


class FullError(Exception):
    """More texts wait than may."""


class StoppedError(Exception):
    """The server shuts down."""


def busy_error(error: FullError | StoppedError) -> ApiError:
    """Return what a client is told whose work was not taken or was cut."""
    if isinstance(error, StoppedError):
        return ApiError(503, "the server shuts down: the request was cut", code="shutting_down")
    return ApiError(429, "too many texts wait: try again later", code="busy", headers={"Retry-After": RETRY_AFTER})


class Call:
    """Work to do between the steps, a part at a time. Its result is the list of what all parts yield."""

    def __init__(self, parts: Iterator[Sequence[Any]]) -> None:
        self.future: Future[list[Any]] = Future()
        self._parts, self._found = parts, list[Any]()

    def run_part(self) -> bool:
        """Run the next part, unless nobody waits for the result any more. Returns whether it was the last one."""
        if self.future.cancelled():
            return True
        try:
            part = next(self._parts, None)
        except Exception as error:
            self.fail(error)
            return True
        if part is not None:
            self._found += part
            return False
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(self._found)
        return True

    def fail(self, error: Exception) -> None:
        """End with an error, if anybody still waits."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class Scheduler:
    """Runs jobs. The texts of all jobs for a model join and leave one batch.

    Another model may take over while texts of the one before are still generated: those texts keep theirs.
    """

    def __init__(self, generator: Generator, rows: int, waiting: int, metrics: Metrics) -> None:
        """
        Args:
            rows: texts that are generated at the same time.
            waiting: texts that may wait for a row.
        """
        self._generator, self._metrics = generator, metrics
        self._rows, self._most = rows, rows + waiting
        self._live = {generator: LiveBatch(generator.model, rows)}
        self._inbox: queue.SimpleQueue[Job | Call | None] = queue.SimpleQueue()
        self._calls: deque[Call] = deque()
        self._jobs: list[Job] = []
        self._owners: dict[LiveText, Job] = {}
        self._waiting: deque[LiveText] = deque()
        self._waiting_alone: deque[Job] = deque()
        self._alone: tuple[Job, Iterator[None]] | None = None
        self._lock = threading.Lock()
        self._size = 0  # rows of all jobs that were submitted and have not finished
        self._is_stopping = False
        self._cut = 0
        metrics.running.set_function(lambda: self._running)
        metrics.waiting.set_function(lambda: len(self._waiting) + len(self._waiting_alone))
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def take_over(self, generator: Generator, rows: int) -> None:
        """Change the model of the next texts. Runs in the thread of the scheduler, as a part of a call."""
        self._live[generator] = LiveBatch(generator.model, rows)
        self._generator, self._rows = generator, rows

    @property
    def _running(self) -> int:
        return sum(live.count for live in list(self._live.values()))

    @property
    def size(self) -> int:
        """The texts that are generated or wait."""
        return self._size

    def submit(self, job: Job) -> None:
        """Hand over a job, which reports its end in any case.

        Raises:
            FullError: too many texts wait already.
            StoppedError: the server shuts down.
        """
        self._hand_over(job, job.size)

    def call(self, parts: Iterator[Sequence[Any]]) -> Future[list[Any]]:
        """Run work between the steps. Raises as `submit` does, and `StoppedError` as its result."""
        call = Call(parts)
        self._hand_over(call, 1)
        return call.future

    def _hand_over(self, item: Job | Call, size: int) -> None:
        with self._lock:  # nothing is handed over after the end, which nobody would answer
            if self._is_stopping:
                raise StoppedError
            if self._size and self._size + size > self._most:
                raise FullError
            self._size += size
            self._inbox.put(item)

    def _release(self, size: int) -> None:
        with self._lock:
            self._size -= size

    @property
    def is_stopping(self) -> bool:
        """Whether jobs are refused."""
        return self._is_stopping

    def refuse_new(self) -> None:
        """Refuse further jobs."""
        with self._lock:
            self._is_stopping = True

    def stop(self) -> int:
        """Cut what is still running, and end the thread. Returns the number of requests that were cut."""
        self.refuse_new()
        self._inbox.put(None)
        self._thread.join()
        return self._cut

    def _run(self) -> None:
        try:
            while self._receive():
                self._turn()
        except Exception as error:  # while another failure was handled
            notice(f"no more texts can be generated, start the server again: {type(error).__name__}: {one_line(error)}")
            self.refuse_new()
            self._take_rest()
        self._cut = self._fail_all(StoppedError())

    def _turn(self) -> None:
        try:
            self._end_cancelled()
            self._join()
            self._step()
            self._step_alone()
            self._run_call()
            self._forget_models()
        except Exception as error:  # a bug of ours, or memory that ran out: the next requests may well succeed
            self._fail_all(error)
            self._live = {self._generator: LiveBatch(self._generator.model, self._rows)}

    def _forget_models(self) -> None:
        """Free the models that another one follows, and for which no job is left."""
        if len(self._live) > 1:
            used = {self._generator, *(job.generator for job in self._jobs)}
            self._live = {generator: live for generator, live in self._live.items() if generator in used}

    def _take_rest(self) -> None:
        """Take what was handed over before the end, so that it is answered."""
        while not self._inbox.empty():
            item = self._inbox.get()
            if isinstance(item, Job):
                self._jobs.append(item)
            elif item is not None:
                self._calls.append(item)

    def _receive(self) -> bool:
        """Take what others have handed over; wait for it if there is nothing to do. Returns False at the end."""
        while not ((self._jobs or self._calls) and self._inbox.empty()):
            item = self._inbox.get()
            if item is None:
                return False
            if isinstance(item, Job):
                self._begin(item)
            else:
                self._calls.append(item)
        return True

    def _begin(self, job: Job) -> None:
        self._jobs.append(job)
        if not job.is_live:
            self._waiting_alone.append(job)
            return
        try:
            if job.generator not in self._live:  # another model took over before the job arrived
                self._live[job.generator] = LiveBatch(job.generator.model, self._rows)
            texts = job.begin()
        except Exception as error:  # such as memory that ran out: the others go on
            self._end(job, Finished(error))
            return
        self._owners.update(dict.fromkeys(texts, job))
        self._waiting.extend(texts)

    def _end_cancelled(self) -> None:
        for job in [job for job in self._jobs if job.is_cancelled]:
            self._end(job)

    def _end(self, job: Job, finished: Finished | None = None) -> None:
        """Forget a job and its texts, and report its end; None if nobody wants to know."""
        self._jobs.remove(job)
        gone = set(job.texts)
        if live := self._live.get(job.generator):
            live.drop(gone)
        if job.unfinished:
            self._waiting = deque(text for text in self._waiting if text not in gone)
        for text in gone:
            self._owners.pop(text, None)
        if job in self._waiting_alone:
            self._waiting_alone.remove(job)
        if self._alone is not None and self._alone[0] is job:
            self._alone = None
        self._release(job.size)
        if finished is not None:
            job.report(finished)

    def _fail_all(self, error: Exception) -> int:
        jobs = list(self._jobs)
        for job in jobs:
            self._end(job, Finished(error))
        calls = [self._calls.popleft() for _ in range(len(self._calls))]
        for call in calls:
            call.fail(error)
            self._release(1)
        return len(jobs) + len(calls)

    def _join(self) -> None:
        """Give rows to the texts that wait. One that has to wait for a prompt lets others pass."""
        passed = []
        while self._waiting and self._running < self._rows:
            text = self._waiting.popleft()
            if not self._live[self._owners[text].generator].add(text):
                passed.append(text)
        self._waiting.extendleft(reversed(passed))

    def _step(self) -> None:
        """Run a step of the live batch of each model."""
        for live in self._live.values():
            if live.count:
                self._step_of(live)

    def _step_of(self, live: LiveBatch) -> None:
        written = live.step()
        self._metrics.note_step(len(written))
        for token in written:
            job = self._owners.get(token.text)
            if job is None:  # another text of the job has failed in this step
                continue
            if token.error is not None:
                self._end(job, Finished(RunError(str(token.error))))
            elif job.write(token):
                self._end(job, Finished(shared=job.shared))

    def _step_alone(self) -> None:
        """Run a step of the job that runs on its own. They run one after the other."""
        if self._alone is None:
            if not self._waiting_alone:
                return
            job = self._waiting_alone.popleft()
            self._alone = job, job.write_alone()
        job, steps = self._alone
        try:
            next(steps)
        except StopIteration:
            self._end(job, Finished())
        except Exception as error:  # it has a context of its own, so that the others go on
            self._end(job, Finished(error))

    def _run_call(self) -> None:
        """Run a part of what waits longest, and let the others have their turn before its next part."""
        if not self._calls:
            return
        call = self._calls.popleft()
        if call.run_part():
            self._release(1)
        else:
            self._calls.append(call)
