"""Rivals in processes of their own, taking turns: one computes, the others sleep."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import rivals
from jobs import Job
from rivals import ENTRIES

SETTLE = 0.3  # seconds; threads that wait for more work, as OpenMP's do, have gone to sleep by then

BUSY = [sys.executable, "-c", "import os; parent = os.getppid()\nwhile os.getppid() == parent: sum(range(10**5))"]
"""A program that computes on one core, at normal priority."""

NOISE = 0.15  # of a core; more than this by other programs during a run spoils it


class WorkerDied(Exception):
    """The rival's process ended; the message is the end of its output."""


class Worker:
    """One rival, loaded, waiting for jobs."""

    def __init__(self, name: str, shape: str, cache: Path, threads: int) -> None:
        self.name = name
        self.log = (cache / f"{name}.log").open("w+", encoding="utf-8", errors="replace")
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(threads),
            **ENTRIES[name].environment,
        }
        self._process = subprocess.Popen(
            [sys.executable, rivals.__file__, name, shape, str(cache), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )
        try:
            self.load_seconds = self._answer()["loaded"]
        except BaseException:
            self.close()
            raise

    def run(self, job: Job) -> dict:
        """Return `seconds` and `result`, or `refused` if the rival cannot do the job."""
        assert self._process.stdin
        print(json.dumps(dataclasses.asdict(job)), file=self._process.stdin, flush=True)
        return self._answer()

    def processor_seconds(self) -> float:
        """Return the CPU seconds of its threads so far."""
        used = psutil.Process(self._process.pid).cpu_times()
        return used.user + used.system

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):  # it has ended by itself
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self.log.close()

    def _answer(self) -> dict:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self.log.seek(0)
        said = [text for text in self.log.read().splitlines() if text.strip()]
        raise WorkerDied(said[-1] if said else f"exit status {self._process.returncode}")


class Team:
    """Load the rivals of a shape; a rival that fails is left out, and one line says why."""

    def __init__(self, names: list[str], shape: str, cache: Path, threads: int) -> None:
        self.workers: list[Worker] = []
        self.idle_share = 0.0
        """The most that all waiting rivals together computed during a run, as a share of one core."""
        self.foreign_share = 0.0
        """The most that other processes computed during a run, as a check that the machine was idle."""
        self.reasons: dict[str, str] = {}
        """Why a rival that was asked for is not here."""
        for name in names:
            try:
                self.workers.append(Worker(name, shape, cache, threads))
            except WorkerDied as error:
                self._leave_out(name, error)

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.close()
        if self.foreign_share > NOISE:
            report(f"\nother programs computed {self.foreign_share:.0%} of a core during a run: measure again in quiet")

    def race(
        self, job: Callable[[int], Job], repeats: int, company: Callable[[int], bool] = lambda _: False
    ) -> tuple[dict[str, list[dict]], dict[str, str]]:
        """Let every rival do a job once as a warm-up, then take turns.

        Args:
            job: returns the job of repetition -1, the warm-up, 0, 1 and so on. Prompts should differ, because a rival
                may cache what it has read.
            repeats: the counted repetitions.
            company: tells in which repetitions a busy program runs beside the rival.

        Returns:
            The answers by name, and why rivals have none.
        """
        answers: dict[str, list[dict]] = {}
        reasons = dict(self.reasons)
        for repeat in range(-1, repeats):
            for worker in list(self.workers):
                if worker.name in reasons:
                    continue
                try:
                    with busy_program() if company(repeat) else contextlib.nullcontext():
                        answer = self._alone(worker, job(repeat), company(repeat))
                except WorkerDied as error:
                    self._leave_out(worker.name, error)
                    self.workers.remove(worker)
                    worker.close()
                    answers.pop(worker.name, None)
                    reasons |= self.reasons
                    continue
                if "refused" in answer:
                    reasons[worker.name] = answer["refused"]
                elif repeat >= 0:
                    answers.setdefault(worker.name, []).append(answer)
        return answers, reasons

    def _leave_out(self, name: str, error: Exception) -> None:
        self.reasons[name] = str(error)[:100]
        report(f"{name} is left out: {error}")

    def _alone(self, worker: Worker, job: Job, has_company: bool) -> dict:
        time.sleep(SETTLE)
        others = [other for other in self.workers if other is not worker]

        def computed() -> tuple[float, float, float, float]:
            waiting = sum(other.processor_seconds() for other in others)
            return time.perf_counter(), worker.processor_seconds(), waiting, _machine_seconds()

        before = computed()
        answer = worker.run(job)
        wall, own, waiting, everything = (now - then for then, now in zip(before, computed(), strict=True))
        if wall > 0.5 and not has_company:  # the clocks of the processor tick a hundred times a second
            self.idle_share = max(self.idle_share, waiting / wall)
            self.foreign_share = max(self.foreign_share, (everything - own - waiting) / wall)
        return answer


@contextlib.contextmanager
def busy_program() -> Iterator[None]:
    """Run a busy program meanwhile."""
    program = subprocess.Popen(BUSY)
    try:
        yield
    finally:
        program.kill()
        program.wait()


def _machine_seconds() -> float:
    """Return the CPU seconds of the whole machine so far; in a virtual machine also those that its host took."""
    times = psutil.cpu_times()
    return times.user + times.system + getattr(times, "nice", 0.0) + getattr(times, "steal", 0.0)


def spread(values: list[float]) -> dict[str, float]:
    """Return median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def report(line: str) -> None:
    """Print a line to stderr."""
    print(line, file=sys.stderr, flush=True)
