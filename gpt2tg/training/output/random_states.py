"""Save the random states of a process in its checkpoint, and restore them.

transformers does so too, but forgets Apple's GPU, and sets up a CUDA GPU even if the run is on the CPU. The file has
its format.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.trainer_pt_utils import safe_globals

from gpt2tg.training.devices import gpu_random_state, set_gpu_random_state


def random_state_file(checkpoint: Path, process: int, processes: int) -> Path:
    """Return the file with the random states of a process."""
    return checkpoint / ("rng_state.pth" if processes == 1 else f"rng_state_{process}.pth")


def random_states(device: torch.device) -> dict[str, Any]:
    """Return the random states of Python, numpy, torch and the GPU that is used."""
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    if (gpu_state := gpu_random_state(device)) is not None:
        states[device.type] = gpu_state
    return states


def save_random_states(checkpoint: Path, states: Sequence[dict[str, Any]]) -> None:
    """Write the random states of each process; make a missing directory."""
    checkpoint.mkdir(parents=True, exist_ok=True)
    for process, of_one in enumerate(states):
        torch.save(of_one, random_state_file(checkpoint, process, len(states)))


def load_random_states(path: Path, device: torch.device) -> None:
    """Restore the random states, but leave that of the GPU if the file has none for this kind of device."""
    with safe_globals():  # type: ignore[no-untyped-call]  # not annotated
        states = torch.load(path, map_location="cpu", weights_only=True)
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["cpu"])
    if (gpu_state := states.get(device.type)) is not None and device.type != "cpu":
        # Earlier versions saved those of all GPUs if there were several processes.
        set_gpu_random_state(device, gpu_state[device.index or 0] if isinstance(gpu_state, list) else gpu_state)
