"""GPUs that no machine of ours has: torch.mps and torch.cuda are stood in for."""

from __future__ import annotations

import types

import pytest
import torch

from gpt2tg.training import devices, timing

MPS = types.SimpleNamespace(type="mps")


class Apple:
    """Stands in for torch.mps: counts synchronisations, and its random state is a number."""

    def __init__(self) -> None:
        self.state = 5
        self.waited = 0

    def get_rng_state(self) -> int:
        return self.state

    def set_rng_state(self, state: int) -> None:
        self.state = state

    def synchronize(self) -> None:
        self.waited += 1

    def driver_allocated_memory(self) -> int:
        return 3_000_000_000

    def recommended_max_memory(self) -> int:
        return 12_000_000_000


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch) -> Apple:
    found = Apple()
    monkeypatch.setattr(torch, "mps", found)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    return found


def test_timing_waits_for_the_gpu(apple: Apple) -> None:
    """Otherwise --dry_run would predict a fraction of the time."""
    timing._timed(lambda: None, MPS)
    assert apple.waited == 1
    timing._timed(lambda: None, torch.device("cpu"))
    assert apple.waited == 1


def test_memory_is_read_from_the_training_device(apple: Apple) -> None:
    assert devices.memory_gb(MPS) == 3.0
    assert devices.device_bytes(MPS) == 12_000_000_000
    assert 0 < devices.memory_gb(torch.device("cpu")) != 3.0


def test_memory_of_other_processes_is_told_from_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2_000, 24_000))  # free and in all
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5_000)
    assert devices.bytes_of_other_processes(torch.device("cuda")) == 17_000
    assert devices.bytes_of_other_processes(torch.device("cpu")) == 0


def test_random_state_is_restored_on_all_devices(apple: Apple) -> None:
    before = torch.random.get_rng_state()

    def draw() -> None:
        torch.rand(3)
        apple.state += 1
        raise RuntimeError

    with pytest.raises(RuntimeError), devices.preserved_random_state():
        draw()
    assert apple.state == 5
    assert torch.equal(torch.random.get_rng_state(), before)
