"""The choice among the ways to hold a matrix."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch
from conftest import kernels_here, random_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import generate_from_finetuned
from gpt2tg.checkpoint.config import read_shape
from gpt2tg.checkpoint.weights import read_weights
from gpt2tg.engine import matrix_choice
from gpt2tg.engine.cpu import kernels
from gpt2tg.engine.matrices import PackedFp16, PackedInt8, Panels, Plain, SplitSum
from gpt2tg.engine.matrix_choice import matrix_maker
from gpt2tg.engine.model import GPT2
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import load
from gpt2tg.options import decoding_options

CPU = torch.device("cpu")


def test_auto_is_fp16_on_cuda_and_fp32_elsewhere() -> None:
    assert matrix_maker("auto", torch.device("cuda"), 32, 128)[0] == "fp16"
    assert matrix_maker("auto", CPU, 32, 128)[0] == "fp32"
    assert matrix_maker("auto", torch.device("mps"), 32, 128)[0] == "fp32"


def test_int8_on_a_gpu_is_an_error_that_names_the_flag() -> None:
    with pytest.raises(UserError, match="int8 is for the CPU; on cuda use fp16 or fp32") as caught:
        matrix_maker("int8", torch.device("cuda"), 32, 128)
    assert caught.value.option == "precision"


class Copies(TorchDispatchMode):
    """Notes what is copied to another device or dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[Tensor] = []

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        if func is torch.ops.aten._to_copy.default:
            self.sources.append(args[0])
        return func(*args, **(kwargs or {}))  # type: ignore[operator]


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_weights_are_sent_to_a_gpu_as_they_are_stored(model_dir: Path, precision: str) -> None:
    """Else the CPU transposes the embedding before it is sent, which takes longer than sending it."""
    shape = read_shape(model_dir)
    with Copies() as copies:
        model = GPT2(read_weights(model_dir, shape), shape, torch.device("meta"), precision)
    assert shape.vocab_size in {len(source) for source in copies.sources}
    assert all(source.is_contiguous() for source in copies.sources)
    assert model.logits(torch.zeros(2, shape.n_embd, device="meta", dtype=model.dtype)).shape == (2, shape.vocab_size)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_fp16_and_int8_are_packed_for_the_kernels(precision: str) -> None:
    kernels_here()
    given, make = matrix_maker(precision, CPU, 32, 128)
    assert given == precision
    assert isinstance(make(torch.ones(4, 4)), Panels)


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "load", lambda: None)


@pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="torch has no FBGEMM here")
@pytest.mark.parametrize(("precision", "kind"), [("fp16", PackedFp16), ("int8", PackedInt8)])
def test_without_kernels_torch_packs_the_weights(
    no_kernels: None, precision: str, kind: type, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load(str(model_dir), precision=precision).model
    assert model.precision == precision
    assert all(isinstance(matrix, kind) for matrix in model.matrices.values())
    assert generate_from_finetuned.main(words(model_dir, precision)) == 0
    assert "not to be had" not in capsys.readouterr().err


def words(model_dir: Path, precision: str) -> list[str]:
    command = ["--model_path", str(model_dir), "--prompt", "The fox", "--max_new_tokens", "12", "--decoding", "greedy"]
    return [*command, "--precision", precision]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_unsupported_precision_falls_back_to_fp32_with_a_note(
    no_kernels: None,
    precision: str,
    model_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert generate_from_finetuned.main(words(model_dir, "fp32")) == 0
    plain, _ = capsys.readouterr()

    class Engines:
        supported_engines = ("none", "qnnpack")

    monkeypatch.setattr(torch.backends, "quantized", Engines)
    assert generate_from_finetuned.main(words(model_dir, precision)) == 0
    out, err = capsys.readouterr()
    assert out == plain
    assert err == f"--precision {precision} is not available on this processor: fp32 is used\n"


def test_greedy_text_without_kernels_is_the_same(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = decoding_options({"decoding": "greedy", "max_new_tokens": 40})
    by_kernels = load(str(model_dir)).generate("The fox", wanted)[0].ids
    monkeypatch.setattr(kernels, "load", lambda: None)
    assert load(str(model_dir)).generate("The fox", wanted)[0].ids == by_kernels


# Timing which one is fastest

MAKERS = {"plain": lambda weight: Plain(weight), "split": lambda weight: SplitSum(weight)}


@pytest.fixture
def cache_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where timings are cached; the file does not exist yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "gpt2tg" / "fastest.json"


@pytest.fixture
def timed_shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The shapes that were timed. `split` is always the fastest."""
    shapes: list[tuple[int, int]] = []

    def measure(makers: dict, width: int, inner: int) -> str:
        shapes.append((width, inner))
        return "split"

    monkeypatch.setattr(matrix_choice, "time_makers", measure)
    return shapes


def test_shape_is_timed_once(cache_file: Path, timed_shapes: list) -> None:
    for width in (8, 8, 16, 16, 8):
        assert matrix_choice._cached_fastest(MAKERS, width, 32) == "split"
    assert timed_shapes == [(8, 32), (16, 32)]


def test_other_makers_are_timed_anew(cache_file: Path, timed_shapes: list) -> None:
    matrix_choice._cached_fastest(MAKERS, 8, 32)
    matrix_choice._cached_fastest({**MAKERS, "panels": MAKERS["plain"]}, 8, 32)
    assert len(timed_shapes) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"null",
        b'"split"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a": ["b"]}',
        "a wrong kind of value",
    ],
    ids=lambda content: str(content)[:12],
)
def test_broken_cache_file_is_replaced(cache_file: Path, timed_shapes: list, content: bytes | str) -> None:
    matrix_choice._cached_fastest(MAKERS, 8, 32)
    if isinstance(content, str):  # the right key with a value that is no name
        content = json.dumps({key: ["split"] for key in json.loads(cache_file.read_text())}).encode()
    cache_file.write_bytes(content)
    assert matrix_choice._cached_fastest(MAKERS, 8, 32) == matrix_choice._cached_fastest(MAKERS, 8, 32) == "split"
    assert len(timed_shapes) == 2


def test_without_a_cache_directory_every_call_times(
    tmp_path: Path, timed_shapes: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert matrix_choice._cached_fastest(MAKERS, 8, 32) == matrix_choice._cached_fastest(MAKERS, 8, 32) == "split"
    assert len(timed_shapes) == 2


def test_two_writers_at_once_leave_a_complete_file(cache_file: Path, timed_shapes: list) -> None:
    def work(first: int) -> None:
        for width in range(first, first + 30):
            matrix_choice._cached_fastest(MAKERS, width, 32)

    workers = [threading.Thread(target=work, args=(first,)) for first in (1, 1000)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    kept = json.loads(cache_file.read_text())
    assert set(kept.values()) == {"split"}
    assert [path.name for path in cache_file.parent.iterdir()] == ["fastest.json"]


def test_timing_of_an_absurd_shape_takes_little_memory() -> None:
    made: list[tuple[int, ...]] = []

    def make(weight: Tensor) -> Plain:
        made.append(tuple(weight.shape))
        return Plain(weight[:8, :8])

    class Any8(Plain):
        def __call__(self, x: Tensor) -> Tensor:
            return x[:, :8] @ self.weight

    makers = {"a": lambda w: Any8(make(w).weight), "b": lambda w: Any8(make(w).weight)}
    assert matrix_choice.time_makers(makers, 60_000, 240_000)
    assert max(width * inner for width, inner in made) <= 2**24


def test_wrong_shape_is_refused_before_anything_is_timed(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_model().save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((model_dir / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_inner": 200_000}))
    monkeypatch.setattr(matrix_choice, "time_makers", lambda *_: pytest.fail("timed"))
    with pytest.raises(UserError, match="has the shape"):
        load(str(tmp_path))
