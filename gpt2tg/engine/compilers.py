"""What Triton and torch.compile need on this machine."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch

# The oldest CUDA GPUs that Triton generates code for.
LOWEST_CAPABILITY = (7, 0)


def find_obstacle(device: torch.device) -> str | None:
    """Return what prevents torch.compile and Triton on a device; None if nothing is known to prevent it.

    They would find out late, and say it in many lines. Triton compiles a C program for each kernel, Inductor a C++
    program for a CPU; both include Python.h.
    """
    if device.type not in ("cuda", "cpu") or os.name == "nt":
        return None
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed (pip install triton)"
        if torch.version.hip is None and torch.cuda.get_device_capability(device) < LOWEST_CAPABILITY:
            return f"Triton does not support {torch.cuda.get_device_name(device)}"
    variable, names = ("CC", ("gcc", "clang")) if device.type == "cuda" else ("CXX", ("g++", "clang++"))
    chosen = os.environ.get(variable, "").split()[:1]  # may have flags behind it
    if not any(map(shutil.which, chosen or names)):
        return f"found no compiler ({' or '.join(chosen or names)})"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "Python.h is missing (a package like python3-dev contains it)"
    return None
