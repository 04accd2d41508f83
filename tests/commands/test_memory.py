"""Out of memory: one line with advice that fits the command, wherever it happens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import generate_from_finetuned
import gpt2_text_generation
import text_generation_demo
from gpt2tg.engine.model import GPT2
from gpt2tg.generation import generator
from gpt2tg.generation.caches import Caches
from gpt2tg.io.memory import is_out_of_memory
from gpt2tg.training import evaluate as evaluation

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.\nGPU 0 has a total capacity of 8.00 GiB."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError(
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call"
    ),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GB, max allowed: 18.13 GB)."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
    MemoryError("Unable to allocate 9.00 GiB for an array"),
]

TEXTS = Path(__file__).parents[2] / "sample_data.txt"

SCRIPTS: dict[str, Callable[[list[str]], int]] = {
    "generate": generate_from_finetuned.main,
    "demo": text_generation_demo.main,
    "evaluate": gpt2_text_generation.main,
}

LOADING = (GPT2, "__init__")
PROBABILITIES = (GPT2, "all_logits")
GENERATING = (Caches, "lend")
EVALUATING = (evaluation, "_measure")

# Script, flags, where the memory runs out, the beginning of the advice. FILE is TEXTS.
CASES = [
    ("generate", "--max_new_tokens 4", LOADING, "the model does not fit into the memory that is free: close other"),
    ("generate", "--max_new_tokens 4", GENERATING, "lower --batch_size, --num_sequences or --max_length, or use"),
    ("generate", "--max_new_tokens 4 --show_probabilities", PROBABILITIES, "lower --batch_size, --num_sequences or"),
    ("generate", "--max_new_tokens 4 --format jsonl", GENERATING, "lower --batch_size, --num_sequences or"),
    ("generate", "--score FILE", PROBABILITIES, "score shorter lines, close other programs, or use --device cpu"),
    ("generate", "--candidates 3", PROBABILITIES, "shorten the prompts, close other programs, or use --device cpu"),
    ("generate", "--interactive", LOADING, "the model does not fit into the memory that is free"),
    ("demo", "--compare --max_new_tokens 4", GENERATING, "lower --batch_size or --max_length, or use --device cpu"),
    (
        "demo",
        "--tune --max_new_tokens 4 --reference FILE",
        GENERATING,
        "lower --batch_size or --max_length, or use --device cpu",
    ),
    ("evaluate", "--task evaluate --eval_file FILE", EVALUATING, "lower --batch_size"),
]


def run(script: str, flags: str, model: Path) -> int:
    option = "--model_name" if script == "evaluate" else "--model_path"
    return SCRIPTS[script]([option, str(model), *flags.replace("FILE", str(TEXTS)).split()])


def fail(monkeypatch: pytest.MonkeyPatch, place: tuple[object, str], error: Exception) -> None:
    def without_memory(*_: object, **__: object) -> object:
        raise error

    monkeypatch.setattr(*place, without_memory)


@pytest.mark.parametrize(("script", "flags", "place", "advice"), CASES)
def test_every_command_gives_its_own_advice(
    script: str,
    flags: str,
    place: tuple[object, str],
    advice: str,
    model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fail(monkeypatch, place, ERRORS[0])
    assert run(script, flags, model_dir) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"error: out of memory: {advice}" in last
    assert "9.00 GiB" not in last


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error)[:20])
def test_every_library_is_understood(
    error: Exception, model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    fail(monkeypatch, PROBABILITIES, error)
    assert run("generate", "--candidates 2", model_dir) == 1
    assert "error: out of memory: shorten the prompts" in capsys.readouterr().err


def test_other_errors_stay_what_they_are(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail(monkeypatch, PROBABILITIES, RuntimeError("CUDA error: device-side assert triggered"))
    assert run("generate", "--candidates 2", model_dir) == 1
    assert "unexpected RuntimeError: CUDA error: device-side assert triggered" in capsys.readouterr().err


def test_real_errors_of_torch_are_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.fixture
def full_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU without room for a model, which is what `auto` finds."""
    load_weights = GPT2.__init__

    def loaded(self: GPT2, weights: object, shape: object, device: torch.device, *others: object) -> None:
        if device.type == "cuda":
            raise ERRORS[0]
        load_weights(self, weights, shape, device, *others)  # type: ignore[arg-type]

    monkeypatch.delenv("GPT2TG_DEVICE")
    monkeypatch.setattr(GPT2, "__init__", loaded)
    monkeypatch.setattr(generator, "choose_device", lambda asked: torch.device("cpu" if asked == "cpu" else "cuda"))


def test_auto_leaves_a_full_gpu_for_the_cpu(
    model_dir: Path, full_gpu: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generator.load(model_dir).model.device.type == "cpu"
    assert capsys.readouterr().err == (
        "cuda is not used, but cpu: the model does not fit into the memory that is free there\n"
    )


def test_full_gpu_that_was_asked_for_is_an_error(
    model_dir: Path, full_gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        generator.load(model_dir, "cuda")
    monkeypatch.setenv("GPT2TG_DEVICE", "cuda")
    assert run("generate", "--max_new_tokens 4", model_dir) == 1
    assert "error: out of memory: the model does not fit" in capsys.readouterr().err
