"""How the threads of the kernels share tasks, when some of them stand still."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import kernels_here
from numpy_gpt2 import KernelGPT2, Shape, Weights

from gpt2tg.engine.cpu import compiler, kernels

# The last thread stands still in its first task of the job STOPPED until the first thread has gone through all jobs;
# if the job is not repeatable, for a while. Until then, the others stand still in their first tasks of it. Prints how
# often each task was written, a job per line.
SOURCE = """
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "team.h"

static _Atomic int stands_still, over, written[JOBS][TASKS];

static void work(const Team *team, int job) {
  if (job != STOPPED) return;
  if (team->thread < THREADS - 1)
    while (!stands_still) sched_yield();
  else if (!stands_still++) {
    if (REPEATABLE)
      while (!over) sched_yield();
    else
      usleep(30000);
  }
}

int main(void) {
  int64_t bytes = job_bytes(TASKS, THREADS) * JOBS;
  char *shares = calloc(bytes, 1);
#pragma omp parallel num_threads(THREADS)
  {
    Team team = {omp_get_thread_num(), THREADS, shares};
    for (int number = 0; number < JOBS; number++) {
      Job job = begin_job(&team, TASKS, REPEATABLE);
      for (int task; (task = next_task(&job)) >= 0;) {
        for (int other = 0; number && other < TASKS; other++) /* the job before is done */
          if (written[number - 1][other] != 1) abort();
        work(&team, number);
        if (REPEATABLE && !may_write(&job)) continue;
        written[number][task]++;
        end_task(&job);
      }
    }
    if (team.thread == 0) over = 1;
    if (team.shares != shares + bytes) abort();
  }
  for (int number = 0; number < JOBS; number++)
    for (int task = 0; task < TASKS; task++) printf(task + 1 < TASKS ? "%d " : "%d\\n", written[number][task]);
}
"""

Program = Callable[..., list[list[int]]]


@pytest.fixture
def counts(tmp_path: Path) -> Program:
    """Return how often each task of each job was written, if a thread stands still in one of them."""
    kernels_here()
    if sys.platform == "darwin":
        pytest.skip("Apple's compiler has no OpenMP library of its own")

    def run(threads: int, tasks: int, stopped: int, repeatable: bool, granted: int = 99) -> list[list[int]]:
        found = compiler.find_compiler()
        assert found
        (tmp_path / "team.c").write_text(SOURCE, encoding="utf-8")
        values = {"THREADS": threads, "JOBS": 5, "TASKS": tasks, "STOPPED": stopped, "REPEATABLE": int(repeatable)}
        defined = [f"-D{name}={value}" for name, value in values.items()]
        files = [str(tmp_path / "team.c"), "-o", str(tmp_path / "team")]
        subprocess.run([found, "-O1", "-fopenmp", f"-I{compiler.SOURCE.parent}", *defined, *files], check=True)
        limit = {**os.environ, "OMP_THREAD_LIMIT": str(granted), "OMP_DYNAMIC": "false"}
        told = subprocess.run([tmp_path / "team"], env=limit, capture_output=True, text=True, check=True, timeout=20)
        return [[int(number) for number in line.split()] for line in told.stdout.splitlines()]

    return run


@pytest.mark.parametrize("stopped", [0, 2, 4])
@pytest.mark.parametrize(("threads", "tasks"), [(2, 7), (3, 3), (4, 50)])
def test_team_goes_on_without_a_thread(counts: Program, threads: int, tasks: int, stopped: int) -> None:
    """It stands still until the others have done all jobs; then its result is dropped."""
    assert counts(threads, tasks, stopped, repeatable=True) == [[1] * tasks] * 5


@pytest.mark.parametrize(("threads", "tasks"), [(2, 7), (3, 4)])
def test_tasks_that_write_as_they_go_are_done_once(counts: Program, threads: int, tasks: int) -> None:
    assert counts(threads, tasks, stopped=1, repeatable=False) == [[1] * tasks] * 5


@pytest.mark.parametrize(("threads", "granted"), [(10, 10), (10, 3), (4, 1)])
def test_every_task_is_done_by_any_number_of_threads(counts: Program, threads: int, granted: int) -> None:
    """More threads than tasks, and fewer threads than asked for."""
    assert counts(threads, 7, stopped=-1, repeatable=True, granted=granted) == [[1] * 7] * 5


@pytest.mark.parametrize("precision", kernels.PRECISIONS)
def test_many_threads_on_few_cores_change_no_bit(library: kernels.Kernels, precision: str) -> None:
    """They take turns on the cores, so that tasks are done again, some of them late."""
    weights = Weights(Shape(width=96, inner=400, heads=3, vocabulary=900, depth=6))
    threads = 3 + 4 * (os.cpu_count() or 1)
    text = [int(number) for number in np.random.default_rng(0).integers(0, 900, 40)]
    for tokens, runs in ((1, 80), (8, 40), (40, 15)):
        model = KernelGPT2(library, weights, precision)
        alone = model.read({0: text[:tokens]})
        following, _ = model.read({0: [1]}, start=tokens)
        for _ in range(runs):
            model.forget()
            crowded = model.read({0: text[:tokens]}, threads=threads)
            assert all(np.array_equal(*pair) for pair in zip(alone, crowded, strict=True)), tokens
            assert np.array_equal(model.read({0: [1]}, start=tokens)[0], following), tokens
