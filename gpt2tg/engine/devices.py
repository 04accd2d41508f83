"""Choose the device that computes, and set it up."""

from __future__ import annotations

import os
import warnings
from itertools import pairwise

import torch

from gpt2tg.engine.cpu.startup import DEVICE_VARIABLE, wanted_device
from gpt2tg.errors import UserError, one_line
from gpt2tg.io.memory import is_out_of_memory
from gpt2tg.io.processes import local_count, local_number
from gpt2tg.io.streams import notice


def choose_device(device: str) -> torch.device:
    """Return the device for a `--device` value, which is set up for attention.

    `auto` is what the environment variable GPT2TG_DEVICE says, else the first usable one of a CUDA GPU, Apple's GPU and
    the CPU. A GPU that torch finds but that cannot compute produces a notice. Of several processes, each uses a GPU of
    its own, as long as there are enough.

    Raises:
        UserError: the device does not exist, or cannot compute.
    """
    wanted = wanted_device(device)
    if wanted in ("auto", "cuda"):
        _use_own_gpu()
    chosen = _first_usable() if wanted == "auto" else _named(wanted, "device" if wanted == device else DEVICE_VARIABLE)
    if chosen.type == "cuda":
        # cuDNN's attention, which torch asks first on recent GPUs, builds a plan for each new length of the text: that
        # takes longer than the step itself. With a mask, its gradients can be NaN.
        torch.backends.cuda.enable_cudnn_sdp(False)
    return chosen


def _use_own_gpu() -> None:
    """Select the GPU of this process, if a launcher started several: all would be set up on the first GPU otherwise."""
    number, gpus = local_number(), torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus and number % gpus:
        torch.cuda.set_device(number % gpus)


def share_cores() -> None:
    """Let this process use its share of the cores, if a launcher started several on this machine.

    A launcher sets OMP_NUM_THREADS to 1, however many cores there are. Any other value is the user's, and is kept.
    """
    if local_count() > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        has_affinity = hasattr(os, "sched_getaffinity")
        cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // local_count()))


def leaves_for_cpu(asked: str, used: torch.device, error: RuntimeError) -> bool:
    """Whether the CPU takes over from a GPU that has no room for the model: if `auto` chose it. Prints a notice then.

    Args:
        asked: the `--device` value.
        used: the device on which the error occurred.
    """
    if used.type == "cpu" or wanted_device(asked) != "auto" or not is_out_of_memory(error):
        return False
    notice(f"{used} is not used, but cpu: the model does not fit into the memory that is free there")
    return True


def _first_usable() -> torch.device:
    candidates = [kind for kind, exists in _available().items() if exists]
    for kind, following in pairwise(candidates):
        fault = _find_fault(torch.device(kind))
        if fault is None:
            return torch.device(kind)
        notice(f"{kind} is not used, but {following}: {fault}")
    return torch.device("cpu")


def _named(device: str, option: str) -> torch.device:
    """Return a device that the user has named in an option, or in the environment variable."""
    kind, _, index = device.partition(":")
    if not _available()[kind]:
        raise _refusal(f"{device} asked for, but torch finds no such device here: use auto or cpu", option)
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise _refusal(f"{device} asked for, but there are only {torch.cuda.device_count()} CUDA devices", option)
    if fault := _find_fault(torch.device(device)):
        raise _refusal(f"{device} asked for, but it cannot be used: {fault}; use auto or cpu", option)
    return torch.device(device)


def _refusal(message: str, option: str) -> UserError:
    return UserError(f"{option}={message}") if option == DEVICE_VARIABLE else UserError(message, option)


def _available() -> dict[str, bool]:
    """Return whether torch finds each kind of device, the fastest kind first."""
    return {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}


def _find_fault(device: torch.device) -> str | None:
    """Run one kernel on a device. Return why it fails, or None.

    torch also finds GPUs that it has no kernels for, that another program has reserved, or whose memory is used up.
    """
    if device.type == "cpu":
        return None
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", local_number() % torch.cuda.device_count())
    try:
        with warnings.catch_warnings():  # torch warns in several lines of what is reported here in one
            warnings.simplefilter("ignore")
            torch.ones(1, device=device).add(1).item()
    except RuntimeError as error:
        return one_line(error)
    return None
