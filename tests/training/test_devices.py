"""GPUs that no machine of ours has: torch.mps and torch.cuda are stood in for."""

from __future__ import annotations

import os
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_finetune import quick

from gpt2tg.training import devices, run, timing
from gpt2tg.training import finetune as finetuning
from gpt2tg.training.finetune import finetune
from gpt2tg.training.output.random_states import (
    load_random_states,
    random_state_file,
    random_states,
    save_random_states,
)

MPS = types.SimpleNamespace(type="mps")


class Apple:
    """Stands in for torch.mps: counts synchronisations, and its random state is one number."""

    def __init__(self) -> None:
        self.state = torch.tensor([5])
        self.waited = 0

    def get_rng_state(self) -> torch.Tensor:
        return self.state

    def set_rng_state(self, state: torch.Tensor) -> None:
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


def test_random_state_is_restored_on_the_device(apple: Apple) -> None:
    before = torch.random.get_rng_state()

    def draw() -> None:
        torch.rand(3)
        apple.state = apple.state + 1
        raise RuntimeError

    with pytest.raises(RuntimeError), devices.preserved_random_state(MPS):
        draw()
    assert apple.state == 5
    assert torch.equal(torch.random.get_rng_state(), before)


def test_checkpoints_keep_the_random_state_of_an_apple_gpu(apple: Apple, tmp_path: Path) -> None:
    """Otherwise a resumed run would have other dropout masks."""
    path = random_state_file(tmp_path / "checkpoint-1", process=0, processes=1)
    save_random_states(path.parent, [random_states(MPS)])
    apple.state, expected = apple.state + 1, torch.rand(3)
    load_random_states(path, MPS)
    assert apple.state == 5
    assert torch.equal(torch.rand(3), expected)
    apple.state += 1
    load_random_states(path, torch.device("cpu"))  # the run was moved there
    assert apple.state == 6


def test_random_states_of_several_gpus_can_be_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As transformers saved them."""
    device, states = torch.device("cuda", 1), [torch.tensor([3]), torch.tensor([4])]
    found = {}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: found.update({device: state.item()}))
    save_random_states(tmp_path, [random_states(torch.device("cpu")), random_states(device)])
    load_random_states(tmp_path / "rng_state_1.pth", device)
    assert found == {device: 4}


def test_run_on_the_cpu_leaves_the_gpu_alone(
    monkeypatch: pytest.MonkeyPatch, text_file: Path, model_dir: Path, tmp_path: Path
) -> None:
    """It evaluates, samples, saves and resumes. Setting a GPU up takes memory there, and fails if it is broken."""

    def set_up() -> None:
        raise AssertionError("a GPU is set up")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", set_up)
    # A torch with CUDA looks at the stream of the GPU in each step of AdamW, wherever the weights are.
    monkeypatch.setattr(
        torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda self: None, raising=False
    )
    options = quick(text_file, tmp_path / "out", dropout=0.1, max_steps=2, sample_steps=1, num_samples=1)
    finetune(options, str(model_dir), "cpu")
    assert (tmp_path / "out" / "samples.md").read_text().count("## Step") == 2
    finetune(replace(options, max_steps=3, resume="newest"), str(model_dir), "cpu")


def test_peak_memory_is_that_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {torch.device("cuda", 1): 7_000_000_000}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", peaks.__getitem__)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peaks.update({device: 2_000_000_000}))
    device = torch.device("cuda", 1)
    assert devices.memory_gb(device) == 7
    devices.reset_peak_memory(device)
    assert devices.memory_gb(device) == 2
    devices.reset_peak_memory(torch.device("cpu"))


def test_every_attempt_of_a_run_starts_its_peak_memory_anew(
    monkeypatch: pytest.MonkeyPatch, text_file: Path, model_dir: Path, tmp_path: Path
) -> None:
    found: list[str] = []
    monkeypatch.setattr(run, "reset_peak_memory", lambda device: found.append(device.type))
    finetune(quick(text_file, tmp_path / "out", max_steps=1), str(model_dir), "cpu")
    assert found == ["cpu"]


@pytest.mark.skipif(sys.platform != "linux", reason="torch has growing segments on Linux alone")
@pytest.mark.parametrize("name", [None, *devices.ALLOCATOR])
def test_training_on_a_gpu_lets_segments_grow(
    monkeypatch: pytest.MonkeyPatch, text_file: Path, tmp_path: Path, name: str | None
) -> None:
    """Unless the user has set up the allocator by one of its variables."""

    def end(*_: object) -> None:
        raise InterruptedError

    variables = {} if name is None else {name: "max_split_size_mb:64"}
    monkeypatch.setattr(os, "environ", dict(variables))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(finetuning, "choose_device", end)  # which may use the GPU already
    for device, expected in ("cpu", {}), ("auto", {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}):
        with pytest.raises(InterruptedError):
            finetune(quick(text_file, tmp_path / "out"), "gpt2-tiny", device)
        assert os.environ == (variables or expected)
