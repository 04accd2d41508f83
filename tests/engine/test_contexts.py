"""Which context a model gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import kernels_here, read_gpt2

from gpt2tg.engine import matrix_choice
from gpt2tg.engine.contexts import new_context
from gpt2tg.engine.cpu import kernels
from gpt2tg.engine.cpu.kernel_context import KernelContext
from gpt2tg.engine.torch_context import TorchContext


def test_packed_model_gets_a_context_of_the_kernels(model_dir: Path) -> None:
    kernels_here()
    model = read_gpt2(model_dir)
    assert isinstance(new_context(model, 8), KernelContext)
    assert new_context(model, 8).is_exact


@pytest.mark.parametrize("maker", ["plain", "split"])
def test_other_models_get_a_context_of_torch(maker: str, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "load", lambda: None)
    monkeypatch.setattr(matrix_choice, "_cached_fastest", lambda *_: maker)
    model = read_gpt2(model_dir)
    assert isinstance(new_context(model, 8), TorchContext)
    assert not new_context(model, 8).is_exact
