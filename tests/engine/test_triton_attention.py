"""Our attention kernel for decode steps. Without a GPU, Triton's interpreter runs it, and its compiler compiles it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2tg.engine import step_cache
from gpt2tg.engine.cuda_graph import SWITCH
from gpt2tg.engine.step_cache import AttentionKernel, is_kernel_usable

NAME = "gpt2tg.engine.triton_attention"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU here")


# ---- the result ----


def test_kernel_computes_attention_in_the_interpreter(model_dir: Path) -> None:
    """In a process of its own: Triton decides at its import whether it interprets."""
    pytest.importorskip("triton")
    script = Path(__file__).with_name("interpreted_attention.py")
    result = subprocess.run(
        [sys.executable, script, model_dir],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["attention", "cache", "rows", "texts"]


# ---- whether it is used ----


def kernel_with(change: Callable[[Tensor], Tensor]) -> Callable[..., AttentionKernel]:
    """Return a stand-in for SplitAttention that changes the result of torch's attention."""

    def kernel(
        query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, scale: float
    ) -> Tensor:
        rows = torch.arange(len(lengths))
        keys[rows, :, lengths], values[rows, :, lengths] = key[:, :, 0], value[:, :, 0]
        mask = (torch.arange(keys.shape[2]) <= lengths[:, None])[:, None, None]
        return change(torch.nn.functional.scaled_dot_product_attention(query, keys, values, mask, scale=scale))

    return lambda *_: kernel


def failing(*_: object) -> AttentionKernel:
    raise RuntimeError("Cannot find a C compiler\nPlease install gcc")


def full(*_: object) -> AttentionKernel:
    raise torch.OutOfMemoryError("CUDA out of memory")


def full_for_triton(*_: object) -> AttentionKernel:
    raise RuntimeError("Triton Error [CUDA]: out of memory")


@pytest.fixture
def usable(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], bool]:
    """Whether a stand-in for SplitAttention is found usable; None stands for a machine without Triton."""

    def check(kernel: object) -> bool:
        module: ModuleType | None = None
        if kernel is not None:
            module = ModuleType(NAME)
            module.SplitAttention = kernel  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, NAME, module)
        monkeypatch.setattr(step_cache, "find_obstacle", lambda device: None)
        return is_kernel_usable.__wrapped__(torch.device("cpu"), torch.float32, 2, 16)

    return check


def test_correct_kernel_is_used(usable: Callable[[object], bool], capsys: pytest.CaptureFixture[str]) -> None:
    assert usable(kernel_with(lambda x: x))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (failing, "Cannot find a C compiler"),
        (kernel_with(lambda x: x + 0.1), "its result is wrong by 0.1"),
        (kernel_with(lambda x: x * torch.nan), "its result is wrong by nan"),
    ],
)
def test_torch_takes_over_from_a_broken_kernel(
    kernel: object, reason: str, usable: Callable[[object], bool], capsys: pytest.CaptureFixture[str]
) -> None:
    assert not usable(kernel)
    line = f"our attention kernel is not used: {reason}. Attention is computed by torch, which is slower.\n"
    assert capsys.readouterr().err == line


def test_machine_without_triton_says_nothing(
    usable: Callable[[object], bool], capsys: pytest.CaptureFixture[str]
) -> None:
    assert not usable(None)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kernel", [full, full_for_triton])
def test_full_gpu_is_not_a_broken_kernel(kernel: object, usable: Callable[[object], bool]) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        usable(kernel)


def test_missing_compiler_is_named_before_triton_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(step_cache, "find_obstacle", lambda device: "found no compiler (gcc or clang)")
    assert not is_kernel_usable.__wrapped__(torch.device("cpu"), torch.float32, 2, 16)
    assert capsys.readouterr().err.startswith("our attention kernel is not used: found no compiler (gcc or clang). ")


@pytest.mark.parametrize(
    ("device", "graphs", "is_used"), [("cuda:0", None, True), ("cuda:0", "0", False), ("cpu", None, False)]
)
def test_kernel_serves_gpus_unless_graphs_are_off(
    device: str, graphs: str | None, is_used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    if graphs is not None:
        monkeypatch.setenv(SWITCH, graphs)
    module = ModuleType(NAME)
    module.SplitAttention = lambda *arguments: arguments  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, NAME, module)
    monkeypatch.setattr(step_cache, "is_kernel_usable", lambda *_: True)
    cache: Any = SimpleNamespace(shape=(2, 2, 3, 4, 50, 16), device=torch.device(device), dtype=torch.float16)
    expected = (3, 4, 16, 50, torch.device(device)) if is_used else None
    assert step_cache.new_attention_kernel(cache) == expected


# ---- its machine code ----

POINTERS = {"query": "model", "key": "model", "value": "model", "keys": "model", "values": "model", "output": "model",
            "lengths": "*i64"}  # fmt: skip


def compiled(kernel: object, constants: dict[str, int], element: str, capability: int) -> dict[str, object]:
    """Compile a kernel for a GPU that is not here. Return its forms by their kinds, machine code among them."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name.endswith(("_in", "_out")):
            return "*fp32"
        if name == "scale":
            return "fp32"
        return POINTERS.get(name, "i32").replace("model", element)

    signature = {name: kind(name) for name in kernel.arg_names}  # type: ignore[attr-defined]
    target = GPUTarget("cuda", capability, 32)
    return compile(ASTSource(kernel, signature, constants), target=target).asm


@pytest.mark.filterwarnings("ignore:AnnAssign:DeprecationWarning")  # of Triton's own code, on Python 3.13
@pytest.mark.parametrize("element", ["*fp16", "*fp32"])
@pytest.mark.parametrize("capability", [75, 80, 90], ids=["T4", "A100", "H100"])
def test_kernels_compile_for_gpus(
    element: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from gpt2tg.engine import triton_attention

    sizes = {"SIZE": 64, "PADDED": 64, "KEYS": triton_attention.SPLIT}
    for kernel, constants in [
        (triton_attention.attend_to_split, {**sizes, "BLOCK_KEYS": triton_attention.BLOCK}),
        (triton_attention.merge_splits, sizes),
    ]:
        assert compiled(kernel, constants, element, capability)["cubin"]


@needs_gpu
class TestAttentionOnAGPU:
    """The kernel that is really compiled."""

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    @pytest.mark.parametrize("size", [64, 80, 20])
    def test_kernel_equals_attention_of_torch(
        self, dtype: torch.dtype, size: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("triton")
        monkeypatch.setattr(step_cache, "TOLERANCE", 5e-3 if dtype == torch.float16 else 1e-4)
        assert is_kernel_usable.__wrapped__(torch.device("cuda"), dtype, 3, size)
