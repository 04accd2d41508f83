"""GPUs that no machine of ours has: torch.mps and torch.cuda are stood in for."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
import torch

from gpt2tg.errors import UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.training import devices, timing
from gpt2tg.training.arguments import training_arguments

MPS = types.SimpleNamespace(type="mps")


class Apple:
    """A generator whose state is a number, a queue of work, and some memory."""

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


def test_a_step_is_timed_until_the_gpu_has_done_it(apple: Apple) -> None:
    """Else --dry_run promises a fraction of the time."""
    timing._timed(lambda: None, MPS)
    assert apple.waited == 1
    timing._timed(lambda: None, torch.device("cpu"))
    assert apple.waited == 1


def test_a_gpu_that_only_emulates_bf16_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    options = TrainingOptions(train_file="a.txt", output_dir=str(tmp_path), bf16=True)
    with pytest.raises(UserError, match="bf16 is not supported by Tesla T4: use --fp16"):
        training_arguments(options, torch.device("cuda"))


def test_memory_is_that_of_the_device_trained_on(apple: Apple) -> None:
    assert devices.memory_gb(MPS) == 3.0
    assert devices.device_bytes(MPS) == 12_000_000_000
    assert 0 < devices.memory_gb(torch.device("cpu")) != 3.0


def test_samples_and_measurements_leave_all_generators_alone(apple: Apple) -> None:
    before = torch.random.get_rng_state()

    def draw() -> None:
        torch.rand(3)
        apple.state += 1
        raise RuntimeError

    with pytest.raises(RuntimeError), devices.preserved_random_state():
        draw()
    assert apple.state == 5
    assert torch.equal(torch.random.get_rng_state(), before)
