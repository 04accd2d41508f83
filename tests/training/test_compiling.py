"""torch.compile in training, and what happens where it cannot work."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_finetune import quick

from gpt2tg.engine import compilers
from gpt2tg.errors import RunError, UserError
from gpt2tg.training import compiling, run
from gpt2tg.training.finetune import finetune

CUDA, CPU = torch.device("cuda"), torch.device("cpu")

# As "auto" decides for a long run on a CUDA GPU.
COMPILES: Any = lambda *_: True  # noqa: E731


def compile_with(monkeypatch: pytest.MonkeyPatch, backend: Callable[..., Any] | str) -> None:
    monkeypatch.setattr(compiling, "find_obstacle", lambda device: None)  # this backend needs no compiler
    plainly = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: plainly(self, backend=backend))


def weights(directory: Path, step: int) -> bytes:
    return (directory / f"checkpoint-{step}" / "model.safetensors").read_bytes()


def test_compiled_run_has_the_same_losses(
    text_file: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_with(monkeypatch, "aot_eager")
    losses = {}
    for compile in ("off", "on"):
        options = quick(text_file, tmp_path / compile, compile=compile, dropout=0.0, max_steps=3)
        finetune(options, str(model_dir))
        log = json.loads((tmp_path / compile / "checkpoint-3" / "trainer_state.json").read_text())["log_history"]
        losses[compile] = [entry[name] for entry in log for name in ("loss", "eval_loss") if name in entry]
    assert len(losses["on"]) == 5
    assert losses["on"] == pytest.approx(losses["off"], abs=1e-5)


def test_only_long_runs_on_a_gpu_are_compiled(
    text_file: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = quick(text_file, tmp_path)
    monkeypatch.setattr(compiling, "find_obstacle", lambda device: None)
    assert compiling.is_compiled(auto, CUDA, 10_000)
    assert not compiling.is_compiled(auto, CUDA, 100)
    assert not compiling.is_compiled(auto, CPU, 10_000)
    assert not compiling.is_compiled(replace(auto, compile="off"), CUDA, 10_000)
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    finetune(replace(auto, compile="on", max_steps=1), str(model_dir))
    assert len(compiled) == 1


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("triton", "Triton is not installed"),
        ("capability", "does not support Tesla P100"),
        ("compiler", "found no compiler"),
        ("header", r"Python\.h is missing"),
    ],
)
def test_missing_prerequisites_prevent_compiling(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    missing: str, words: str,
) -> None:  # fmt: skip
    """With auto the run goes on after one line; with on it is refused."""
    monkeypatch.delenv("CC", raising=False)
    found = {name: name != missing for name in ("triton", "capability", "compiler", "header")}
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(compilers.importlib.util, "find_spec", lambda name: found["triton"] or None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5) if found["capability"] else (6, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla P100")
    monkeypatch.setattr(compilers.shutil, "which", lambda name: name if found["compiler"] else None)
    include = tmp_path if found["header"] else tmp_path / "nowhere"
    monkeypatch.setattr(compilers.sysconfig, "get_path", lambda name: str(include))
    options = quick(text_file, tmp_path / "out")
    assert not compiling.is_compiled(options, CUDA, 10_000)
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(UserError, match=f"^compile on is not possible here: .*{words}"):
        compiling.check_compiling(replace(options, compile="on"), CUDA)
    found[missing] = True
    (tmp_path / "nowhere").mkdir()
    (tmp_path / "nowhere" / "Python.h").touch()
    assert compiling.is_compiled(options, CUDA, 10_000)


def test_compile_on_without_a_compiler_writes_nothing(
    text_file: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O3")
    with pytest.raises(UserError, match=r"found no compiler \(no-such-compiler\): leave the flag out"):
        finetune(quick(text_file, tmp_path / "out", compile="on"), str(model_dir), "cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("working", [0, 1], ids=["from the start", "at the first short batch"])
def test_failing_compilation_is_done_without(
    text_file: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], working: int,
) -> None:  # fmt: skip
    """A run whose first step fails equals one that was never compiled, to the bit; one that had saved resumes."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        if len(graphs) > working:
            raise FileNotFoundError("no gcc, and no clang\nand more lines")
        return graph.forward

    options = quick(text_file, tmp_path / "plain", batch_size=5, max_steps=6, save_steps=1, dropout=0.0)
    plain = finetune(replace(options, compile="off"), str(model_dir))
    compile_with(monkeypatch, backend)
    monkeypatch.setattr(run, "is_compiled", COMPILES)
    capsys.readouterr()
    outcome = finetune(replace(options, output_dir=str(tmp_path / "out")), str(model_dir))
    told = capsys.readouterr().err.splitlines()
    assert len(graphs) == working + 1
    assert [line for line in told if "torch.compile" in line] == [
        "torch.compile failed: no gcc, and no clang; continuing without it"
    ]
    assert any("resuming at step" in line for line in told) == bool(working)
    assert outcome is not None
    assert plain is not None
    assert outcome.steps == 6
    assert outcome.loss_after == pytest.approx(plain.loss_after, abs=1e-3)
    assert working or weights(tmp_path / "out", 6) == weights(tmp_path / "plain", 6)


def test_failing_compilation_ends_a_run_that_asks_for_it(
    text_file: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        raise FileNotFoundError("no gcc")

    compile_with(monkeypatch, backend)
    with pytest.raises(RunError, match=r"^torch\.compile failed: no gcc: use --compile off$"):
        finetune(quick(text_file, tmp_path / "out", compile="on"), str(model_dir))


def test_nothing_is_compiled_for_evaluation(
    text_file: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learns = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        learns.append(torch.is_grad_enabled())
        return graph.forward

    compile_with(monkeypatch, backend)
    options = quick(text_file, tmp_path / "out", compile="on", validation_file=str(text_file), max_steps=1)
    finetune(options, str(model_dir))
    assert learns == [True]
