"""Helpers of the tests of preloading: preload a model, build it, and compare two of them."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch
from conftest import kernels_here, random_model
from torch import Tensor

from gpt2tg.checkpoint.checkpoint import read_checkpoint
from gpt2tg.checkpoint.weights import stream_weights
from gpt2tg.engine.contexts import new_context
from gpt2tg.engine.cpu.preload import Preload, Preloaded
from gpt2tg.engine.matrices import Panels
from gpt2tg.engine.model import GPT2

CPU = torch.device("cpu")
PRECISIONS = ("fp32", "fp16", "int8")

needs_linux = pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="weights are preloaded on Linux alone")


def uneven_model(directory: Path, tied: bool) -> Path:
    """Save a model in fp32 whose sizes are no multiples of a panel; return its directory."""
    random_model(n_embd=20, n_head=2, n_layer=3, vocab_size=301, tie_word_embeddings=tied).save_pretrained(directory)
    return directory


def start(directory: Path, precision: str = "fp32") -> Preload:
    """Start to preload a model."""
    kernels_here()
    begun = Preload.start(read_checkpoint(directory), precision)
    assert begun is not None
    return begun


def taken(begun: Preload, directory: Path) -> Preloaded:
    """Return what was preloaded so far."""
    found = begun.take(read_checkpoint(directory))
    assert found is not None
    return found


def preloaded(directory: Path, precision: str = "fp32") -> Preloaded:
    """Preload a model to the end."""
    begun = start(directory, precision)
    begun._thread.join()
    return taken(begun, directory)


def built(directory: Path, precision: str, found: Preloaded | None) -> GPT2:
    """Build the model of a directory."""
    checkpoint = read_checkpoint(directory)
    weights = stream_weights(checkpoint, found.names if found else ())
    return GPT2(weights, checkpoint.shape, CPU, precision, found)


def numbers(model: GPT2) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Return panels and scales of each matrix."""
    assert all(isinstance(matrix, Panels) for matrix in model.matrices.values())
    return {name: (matrix.panels.clone(), matrix.scale) for name, matrix in model.matrices.items()}  # type: ignore[attr-defined]


def assert_same(found: GPT2, expected: GPT2) -> None:
    ours, theirs = numbers(found), numbers(expected)
    assert ours.keys() == theirs.keys()
    for name, (panels, scale) in theirs.items():
        assert torch.equal(ours[name][0], panels), name
        assert (scale is None) is (ours[name][1] is None)
        assert scale is None or torch.equal(ours[name][1], scale), name
    ids = [[5, 80, 7, 33, 12]]
    assert torch.equal(new_context(found, 16).start(ids), new_context(expected, 16).start(ids))
