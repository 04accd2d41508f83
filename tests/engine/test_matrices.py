"""The ways to hold a matrix, and the choice among them."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch
from conftest import kernels_here, random_model
from torch import Tensor

import generate_from_finetuned
from gpt2tg.engine import matrices
from gpt2tg.engine.cpu import kernels
from gpt2tg.engine.matrices import PackedFp16, PackedInt8, Panels, Plain, SplitSum, matrix_maker, round_to_int8
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import load
from gpt2tg.options import decoding_options

CPU = torch.device("cpu")

packed = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="torch has no packed products here"
)


def random_matrix(inputs: int, outputs: int, seed: int = 0) -> Tensor:
    return torch.randn(inputs, outputs, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("inputs", [4, 20, 37, 768])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_split_sum_is_the_product(inputs: int, with_bias: bool) -> None:
    weight = random_matrix(inputs, 45)
    split, plain = SplitSum(weight), Plain(weight)
    split.bias = plain.bias = torch.arange(45.0) if with_bias else None
    for items in (1, 2, 5, 6, 20):
        x = random_matrix(items, inputs, seed=items)
        torch.testing.assert_close(split(x), plain(x), rtol=1e-5, atol=1e-4)
        expected = x.double() @ weight.double() + (torch.arange(45.0) if with_bias else 0)
        torch.testing.assert_close(split(x).double(), expected, rtol=1e-5, atol=1e-4)


@packed
@pytest.mark.parametrize(("inputs", "outputs"), [(12, 36), (33, 7), (64, 300)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_packed_products_are_near_those_of_the_weights_as_they_are_held(
    inputs: int, outputs: int, with_bias: bool
) -> None:
    weight, bias = random_matrix(inputs, outputs), random_matrix(1, outputs, seed=1)[0] if with_bias else None
    scale, rounded = round_to_int8(weight)
    held: list[tuple[matrices.Matrix, Tensor]] = [
        (PackedFp16(weight), weight.half().double()),
        (PackedInt8(weight), (rounded * scale).double()),
    ]
    for matrix, known in held:
        matrix.bias = bias
        ids = torch.tensor([[0, outputs - 1], [3, 2]])
        torch.testing.assert_close(matrix.columns(ids).double(), known.t()[ids], rtol=1e-6, atol=1e-7)
        for items in (1, 2, 7):
            x = random_matrix(items, inputs, seed=items)
            expected = x.double() @ known + (0 if bias is None else bias)
            # Where the inputs are rounded to 7 bits, each may be half a unit off.
            half = (x.max() - x.min()) / 127 / 2 if isinstance(matrix, PackedInt8) else 1e-6
            assert ((matrix(x) - expected).abs() <= half * known.abs().sum(0) + 1e-5).all()


def test_auto_is_16_bits_on_a_gpu_and_32_elsewhere() -> None:
    assert matrix_maker("auto", torch.device("cuda"), 32, 128)[0] == "fp16"
    assert matrix_maker("auto", CPU, 32, 128)[0] == "fp32"
    assert matrix_maker("auto", torch.device("mps"), 32, 128)[0] == "fp32"


def test_8_bits_on_a_gpu_are_refused_by_flag() -> None:
    with pytest.raises(UserError, match="int8 is for the CPU; on cuda use fp16 or fp32") as caught:
        matrix_maker("int8", torch.device("cuda"), 32, 128)
    assert caught.value.option == "precision"


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_kernels_hold_fewer_bits_where_there_are_kernels(precision: str) -> None:
    kernels_here()
    given, make = matrix_maker(precision, CPU, 32, 128)
    assert given == precision
    assert isinstance(make(random_matrix(4, 4)), Panels)


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "load", lambda: None)


@packed
@pytest.mark.parametrize(("precision", "kind"), [("fp16", PackedFp16), ("int8", PackedInt8)])
def test_without_kernels_torchs_packed_products_do(
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
def test_where_there_is_nothing_for_fewer_bits_one_line_says_so(
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


def test_without_kernels_the_text_is_the_same(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = decoding_options({"decoding": "greedy", "max_new_tokens": 40})
    by_kernels = load(str(model_dir)).generate("The fox", wanted)[0].ids
    monkeypatch.setattr(kernels, "load", lambda: None)
    assert load(str(model_dir)).generate("The fox", wanted)[0].ids == by_kernels


# Measuring what is fastest

MAKERS = {"plain": lambda weight: Plain(weight), "split": lambda weight: SplitSum(weight)}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which measurements are remembered; there is none yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "gpt2tg" / "fastest.json"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The shapes that were measured, always with the same outcome."""
    shapes: list[tuple[int, int]] = []

    def measure(makers: dict, width: int, inner: int) -> str:
        shapes.append((width, inner))
        return "split"

    monkeypatch.setattr(matrices, "measure", measure)
    return shapes


def test_a_shape_is_measured_once(place: Path, measured: list) -> None:
    for width in (8, 8, 16, 16, 8):
        assert matrices._remembered(MAKERS, width, 32) == "split"
    assert measured == [(8, 32), (16, 32)]


def test_another_choice_of_ways_is_measured_anew(place: Path, measured: list) -> None:
    matrices._remembered(MAKERS, 8, 32)
    matrices._remembered({**MAKERS, "panels": MAKERS["plain"]}, 8, 32)
    assert len(measured) == 2


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
def test_spoilt_measurements_are_made_again_and_kept(place: Path, measured: list, content: bytes | str) -> None:
    matrices._remembered(MAKERS, 8, 32)
    if isinstance(content, str):  # the entry that is looked for is there, and no name
        content = json.dumps({key: ["split"] for key in json.loads(place.read_text())}).encode()
    place.write_bytes(content)
    assert matrices._remembered(MAKERS, 8, 32) == matrices._remembered(MAKERS, 8, 32) == "split"
    assert len(measured) == 2


def test_what_cannot_be_kept_is_measured_each_time(
    tmp_path: Path, measured: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert matrices._remembered(MAKERS, 8, 32) == matrices._remembered(MAKERS, 8, 32) == "split"
    assert len(measured) == 2


def test_two_that_measure_at_once_leave_a_whole_file(
    place: Path, measured: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes, as far as the file can tell: each has an id of its own and writes while the other does."""
    monkeypatch.setattr(matrices.os, "getpid", threading.get_ident)

    def work(first: int) -> None:
        for width in range(first, first + 30):
            matrices._remembered(MAKERS, width, 32)

    workers = [threading.Thread(target=work, args=(first,)) for first in (1, 1000)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    kept = json.loads(place.read_text())
    assert set(kept.values()) == {"split"}
    assert [path.name for path in place.parent.iterdir()] == ["fastest.json"]


def test_measuring_names_one_of_the_ways_and_takes_no_more_memory_for_an_absurd_shape() -> None:
    made: list[tuple[int, ...]] = []

    def make(weight: Tensor) -> Plain:
        made.append(tuple(weight.shape))
        return Plain(weight[:8, :8])

    class Any8(Plain):
        def __call__(self, x: Tensor) -> Tensor:
            return x[:, :8] @ self.weight

    assert matrices.measure({"a": lambda w: Any8(make(w).weight), "b": lambda w: Any8(make(w).weight)}, 60_000, 240_000)
    assert max(width * inner for width, inner in made) <= 2**24


def test_a_shape_that_the_weights_do_not_have_is_refused_before_anything_is_measured(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_model().save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((model_dir / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_inner": 200_000}))
    monkeypatch.setattr(matrices, "measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(UserError, match="has the shape"):
        load(str(tmp_path))
