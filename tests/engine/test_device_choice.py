"""The choice of a device: what `auto` is, and what happens if a GPU is there but cannot compute."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch

from gpt2tg.engine.devices import choose_device, share_cores
from gpt2tg.errors import UserError

NO_KERNELS = "CUDA error: no kernel image is available for execution on the device\nCompile with TORCH_USE_CUDA_DSA"
BUSY = "CUDA error: CUDA-capable device(s) is/are busy or unavailable"
FULL = "CUDA error: out of memory"


class Machine:
    """A machine with a CUDA GPU and one of Apple's, whose kernels run on the CPU or fail."""

    def __init__(self) -> None:
        self.faults: dict[str, str] = {}
        """The error of each kind of device that cannot compute."""
        self.tried: list[str] = []
        """Devices on which a kernel was run."""

    def ones(self, size: int, device: torch.device) -> torch.Tensor:
        self.tried.append(str(device))
        warnings.warn("Found GPU0 which is of cuda capability 6.1.\nMinimum is 7.5", stacklevel=1)
        if device.type in self.faults:
            raise RuntimeError(self.faults[device.type])
        return torch.zeros(size)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine()
    monkeypatch.delenv("GPT2TG_DEVICE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", made.ones)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    yield made
    torch.backends.cuda.enable_cudnn_sdp(before)


def test_attention_of_cudnn_is_off_on_cuda(machine: Machine) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    assert choose_device("cpu").type == "cpu"
    assert torch.backends.cuda.cudnn_sdp_enabled()
    assert choose_device("auto") == torch.device("cuda")
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("fault", [NO_KERNELS, BUSY, FULL])
def test_auto_passes_over_a_gpu_that_cannot_compute(
    machine: Machine, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.faults = {"cuda": fault}
    assert choose_device("auto") == torch.device("mps")
    assert capsys.readouterr().err == f"cuda is not used, but mps: {fault.splitlines()[0]}\n"
    machine.faults = {"cuda": fault, "mps": "MPS backend out of memory"}
    assert choose_device("auto") == torch.device("cpu")
    assert capsys.readouterr().err.splitlines()[1:] == ["mps is not used, but cpu: MPS backend out of memory"]


def test_named_gpu_that_cannot_compute_is_refused(machine: Machine) -> None:
    machine.faults = {"cuda": NO_KERNELS}
    with pytest.raises(UserError, match="cuda:1 asked for, but it cannot be used: CUDA error: no kernel") as caught:
        choose_device("cuda:1")
    assert caught.value.option == "device"
    assert "\n" not in str(caught.value)


def test_each_process_tries_and_uses_its_own_gpu(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel on the first GPU would take memory there for every process. More processes than GPUs share them."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for number, device in ("0", "auto"), ("1", "auto"), ("3", "cuda"), ("1", "cpu"):
        monkeypatch.setenv("LOCAL_RANK", number)
        assert choose_device(device) == torch.device("cpu" if device == "cpu" else "cuda")
    assert machine.tried == ["cuda:0", "cuda:1", "cuda:1"]
    assert chosen == [1, 1]


@pytest.mark.parametrize(("processes", "variable", "threads"), [("2", "1", 3), ("2", "2", 1), ("8", None, 1)])
def test_processes_share_the_cores_unless_the_user_decides(
    monkeypatch: pytest.MonkeyPatch, processes: str, variable: str | None, threads: int
) -> None:
    """torchrun sets OMP_NUM_THREADS to 1. Here there are six cores, and one thread at first."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    monkeypatch.delenv("OMP_NUM_THREADS") if variable is None else monkeypatch.setenv("OMP_NUM_THREADS", variable)
    share_cores()
    assert torch.get_num_threads() == threads


def test_environment_variable_says_what_auto_is(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    for named, expected in [("cpu", "cpu"), ("cuda:1", "cuda:1"), ("mps", "mps"), ("auto", "cuda"), ("", "cuda")]:
        monkeypatch.setenv("GPT2TG_DEVICE", named)
        assert choose_device("auto") == torch.device(expected)
    assert choose_device("cpu") == torch.device("cpu")


def test_environment_variable_is_named_in_errors(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    for named, message in [
        ("gpu", "GPT2TG_DEVICE=gpu is not a device: use auto, cpu, cuda, cuda:N or mps"),
        ("cuda:7", "GPT2TG_DEVICE=cuda:7 asked for, but there are only 2 CUDA devices"),
    ]:
        monkeypatch.setenv("GPT2TG_DEVICE", named)
        with pytest.raises(UserError) as caught:
            choose_device("auto")
        assert caught.value.as_flag() == message


def test_this_suite_computes_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a machine with a GPU, which tests that need it must name."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cpu")
