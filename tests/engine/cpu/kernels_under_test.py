"""A pytest plugin for a Python without torch: tests get the kernels in the file that GPT2TG_TESTED_KERNELS names."""

from __future__ import annotations

import ctypes
import os

import pytest

from gpt2tg.engine.cpu import kernels


@pytest.fixture(scope="session")
def library() -> kernels.Kernels:
    return kernels.Kernels(ctypes.CDLL(os.environ["GPT2TG_TESTED_KERNELS"]))
