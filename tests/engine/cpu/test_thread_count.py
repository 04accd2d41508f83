"""How many threads the kernels use beside other programs, with a clock of our own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from gpt2tg.engine.cpu import thread_count
from gpt2tg.engine.cpu.thread_count import FIRST_PATIENCE, MOST_PATIENCE, MOST_TOKENS, SHORT_SECONDS, ThreadCount


class Machine:
    """Two cores, some of which other programs take turns on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cores: int = 2) -> None:
        self.busy = 0
        """Cores on which another program computes."""
        self._wall = self._cpu = 0.0
        clock = SimpleNamespace(perf_counter=lambda: self._wall, process_time=lambda: self._cpu)
        monkeypatch.setattr(thread_count, "time", clock)
        self.threads = ThreadCount(lambda: cores)
        self._cores = cores
        self.slower_alone = 1.0
        """How much longer a forward pass takes with one thread."""

    def forward(self, seconds: float = 0.005, tokens: int = 1) -> int:
        """Run a forward pass: a thread that shares its core gets half of it. Return the number of threads."""
        with self.threads.measured(tokens) as threads:
            seconds *= self.slower_alone if threads == 1 else 1
            shared = max(0, threads - (self._cores - self.busy))
            self._wall += seconds
            self._cpu += seconds * (threads - 0.5 * shared)
        return threads

    def pause(self, seconds: float) -> None:
        self._wall += seconds

    def run(self, seconds: float, of_each: float = 0.005) -> list[int]:
        return [self.forward(of_each) for _ in range(round(seconds / of_each))]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    return Machine(monkeypatch)


def test_quiet_machine_uses_all_threads(machine: Machine) -> None:
    assert set(machine.run(10)) == {2}


def test_core_that_another_program_takes_is_left_to_it(machine: Machine) -> None:
    machine.run(1)
    machine.busy = 1
    counts = machine.run(60)
    assert counts[5] == 2  # two windows decide
    assert counts[15] == 1
    assert counts.count(2) < 0.02 * len(counts)
    longest = max(len(run) for run in "".join(map(str, counts)).split("2"))
    assert longest * 0.005 <= MOST_PATIENCE + 0.1


def test_core_that_is_free_again_is_used_again(machine: Machine) -> None:
    machine.busy = 1
    machine.run(20)
    machine.busy = 0
    counts = machine.run(2 * MOST_PATIENCE)
    assert counts[-1] == 2
    assert set(machine.run(10)) == {2}
    machine.busy = 1
    machine.run(0.1)
    machine.busy = 0
    assert machine.run(FIRST_PATIENCE + 0.1)[-1] == 2  # patience is short again


def test_prompt_uses_all_threads(machine: Machine) -> None:
    """It is a single forward pass, and a long one: others do the work of a thread whose core is taken."""
    machine.busy = 1
    assert machine.run(1)[-1] == 1
    assert machine.forward(tokens=MOST_TOKENS + 1) == 2
    assert machine.forward() == 1


def test_one_delay_changes_nothing(machine: Machine) -> None:
    machine.run(1, of_each=0.011)
    machine.busy = 1
    assert len(machine.run(0.033, of_each=0.011)) == 3  # a window has two forward passes: one is slow, not the next
    machine.busy = 0
    assert set(machine.run(5, of_each=0.011)) == {2}


def test_one_long_delay_gives_no_core_back(machine: Machine) -> None:
    machine.busy = 1
    assert machine.run(10)[-1] == 1
    machine.forward(0.05)
    assert machine.run(0.1).count(2) <= 1


def test_passes_that_fewer_threads_make_long_use_all(machine: Machine) -> None:
    machine.busy, machine.slower_alone = 1, 1.3
    counts = machine.run(60, of_each=0.9 * SHORT_SECONDS)
    assert counts.count(1) < 0.02 * len(counts)


def test_long_forward_passes_use_all_threads(machine: Machine) -> None:
    machine.busy = 1
    assert set(machine.run(5, of_each=1.1 * SHORT_SECONDS)) == {2}
    assert set(machine.run(5, of_each=1.0)) == {2}
    assert machine.run(1, of_each=0.9 * SHORT_SECONDS)[-1] == 1
    assert machine.run(0.1, of_each=1.1 * SHORT_SECONDS)[-1] == 2  # at once, whatever was learned


def test_core_that_became_free_in_a_pause_is_used_soon(machine: Machine) -> None:
    machine.busy = 1
    assert machine.run(20)[-1] == 1
    machine.busy = 0
    machine.pause(MOST_PATIENCE)
    assert machine.run(0.05)[-1] == 2


def test_threads_are_left_out_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, cores=8)
    machine.busy = 3
    assert machine.run(0.5)[-1] == 5


def test_threads_that_sleep_tell_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    machine = Machine(monkeypatch)
    machine.busy = 1
    assert set(machine.run(5)) == {2}
