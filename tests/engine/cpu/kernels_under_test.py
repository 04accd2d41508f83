"""A pytest plugin for a Python without torch: the kernels are those in the file that GPT2TG_KERNELS_UNDER_TEST names."""

from __future__ import annotations

import ctypes
import os

import pytest

from gpt2tg.engine.cpu import kernels


@pytest.fixture(scope="session")
def library() -> kernels.Kernels:
    return kernels.Kernels(ctypes.CDLL(os.environ["GPT2TG_KERNELS_UNDER_TEST"]))
