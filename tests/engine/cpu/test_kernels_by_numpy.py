"""The kernels against numpy in fp64. Needs no torch: `make test-arm` runs these tests under emulation, too."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import numpy as np
import pytest
from numpy_gpt2 import KernelGPT2, Packed, Shape, Weights, activated, address, expected, int8_scale, product, random

from gpt2tg.engine.cpu import kernels

PRECISIONS = ["fp32", "fp16", "int8"]

# Largest errors as shares of the largest number. Where fp32 and fp64 differ in the last bit, a key or value may be
# rounded to the next number of 16 bits, and an input of a product in int8 to the next integer.
TOLERANCE = {"fp32": 5e-6, "fp16": 2e-4, "int8": 1e-2}

TEXT = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 32, 38, 46, 26, 43, 38, 32, 7, 50, 28, 8, 41, 76, 0, 16, 9, 39, 75, 1]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (20, 7), (33, 48), (170, 65)])
def test_products_equal_those_in_numpy(library: kernels.Kernels, precision: str, inputs: int, outputs: int) -> None:
    weight, bias = random(inputs, outputs, seed=1), random(outputs, seed=2)
    weight[:, outputs // 2] = 0
    matrix = Packed(library, weight, precision, bias)
    for tokens in (1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 17, 40):
        x = random(tokens, inputs, seed=tokens)
        right = product(x.astype(np.float64), weight, precision) + bias
        rounding = 1e-6 * (np.abs(x).astype(np.float64) @ np.abs(weight) + 3)
        assert (np.abs(matrix(x) - right) <= rounding).all(), tokens


@pytest.mark.parametrize("precision", PRECISIONS)
def test_neither_other_tokens_nor_threads_change_a_bit(library: kernels.Kernels, precision: str) -> None:
    matrix = Packed(library, random(345, 75, seed=1), precision)
    x = random(300, 345, seed=2)
    alone = np.concatenate([matrix(token[None]) for token in x])
    for tokens in (*range(2, 21), 64, 191, 300):
        for threads in (1, 3):
            assert np.array_equal(matrix(x[:tokens], threads), alone[:tokens]), (tokens, threads)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_packing_does_not_depend_on_the_stored_order(library: kernels.Kernels, precision: str) -> None:
    weight = random(37, 45, seed=1)
    one, other = Packed(library, weight, precision), Packed(library, weight, precision, by_output=True, threads=3)
    assert np.array_equal(one.panels, other.panels)
    if precision == "int8":
        assert np.array_equal(one.scale, int8_scale(weight))
        assert np.array_equal(other.scale, one.scale)


@pytest.mark.parametrize("broken", [None, np.inf, -np.inf, np.nan])
def test_file_is_packed_up_to_a_broken_matrix(library: kernels.Kernels, tmp_path: Path, broken: float | None) -> None:
    weights = random(3, 21, 50, seed=1)
    if broken:
        weights[1, 20, 49] = broken
    (tmp_path / "weights").write_bytes(weights.tobytes())
    with (tmp_path / "weights").open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    start = ctypes.addressof(ctypes.c_char.from_buffer(content))
    right = [Packed(library, weight, "fp16").panels for weight in weights]
    packed = np.zeros((3, *right[0].shape), np.uint8)
    matrices = (kernels.UnpackedMatrix * 3)(
        *(
            kernels.UnpackedMatrix(
                start + weights[0].nbytes * n, 50, 1, 21, 50, kernels.PRECISIONS["fp16"], address(packed[n]), None
            )
            for n in range(3)
        )
    )
    whole = 1 if broken else 3
    assert library.pack_file(matrices, 3, ctypes.c_int32(0)) == whole
    assert np.array_equal(packed[:whole], right[:whole])
    assert library.pack_file(matrices, 3, ctypes.c_int32(1)) == 0


@pytest.mark.parametrize("count", [1, 7, 64, 1001])
def test_gelu_and_its_slope_equal_those_in_numpy(library: kernels.Kernels, count: int) -> None:
    x = 6 * random(count, seed=1)
    y, slope = np.empty_like(x), np.empty_like(x)
    library.gelu(address(x), count, address(y), address(slope), 2)
    wide, step = x.astype(np.float64), 1e-6
    right = (activated(wide + step, "gelu_new") - activated(wide - step, "gelu_new")) / (2 * step)
    np.testing.assert_allclose(y, activated(wide, "gelu_new"), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slope, right, rtol=1e-5, atol=2e-6)


# Head sizes of 16 and 64, and one that no register divides; a width that no register divides.
SHAPES = [
    Shape(),
    Shape(width=128, heads=2, inner=64, depth=1, activation="gelu"),
    Shape(width=44, heads=2, inner=45, activation="relu"),
]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_pass_equals_the_one_in_numpy(library: kernels.Kernels, shape: Shape, precision: str) -> None:
    weights = Weights(shape)
    logits, hidden = KernelGPT2(library, weights, precision).read({0: TEXT})
    right, right_hidden = expected(weights, TEXT, precision)
    for found, wanted in ((logits, right), (hidden, right_hidden)):
        assert np.abs(found - wanted).max() <= TOLERANCE[precision] * np.abs(wanted).max()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_prefill_equals_token_by_token(library: kernels.Kernels, shape: Shape, precision: str) -> None:
    weights = Weights(shape)
    at_once, _ = KernelGPT2(library, weights, precision).read({0: TEXT}, threads=2)
    model = KernelGPT2(library, weights, precision)
    assert np.array_equal(at_once, np.concatenate([model.read({0: [t]}, start=n)[0] for n, t in enumerate(TEXT)]))
    for size in (2, 5, 9):
        model = KernelGPT2(library, weights, precision)
        parts = [model.read({0: TEXT[start : start + size]}, start)[0] for start in range(0, len(TEXT), size)]
        assert np.array_equal(at_once, np.concatenate(parts)), size


@pytest.mark.parametrize("precision", PRECISIONS)
def test_row_does_not_depend_on_its_neighbours(library: kernels.Kernels, precision: str) -> None:
    weights = Weights(Shape())
    texts = {0: TEXT, 1: TEXT[5:6], 2: TEXT[::-1], 3: TEXT[3:20]}
    starts = {row: len(text) for row, text in texts.items()}
    step = {0: [1], 1: [2, 3], 2: [4], 3: [5]}
    together = KernelGPT2(library, weights, precision, rows=4)
    logits, _ = together.read(texts, threads=3)
    next_logits, _ = together.read(step, starts, threads=3)
    alone, next_alone = [], []
    for row, text in texts.items():
        model = KernelGPT2(library, weights, precision)
        alone.append(model.read({0: text})[0])
        next_alone.append(model.read({0: step[row]}, starts[row])[0])
    assert np.array_equal(logits, np.concatenate(alone))
    assert np.array_equal(next_logits, np.concatenate(next_alone))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_that_share_a_prompt_equal_rows_of_their_own(library: kernels.Kernels, precision: str) -> None:
    """Row 1 goes on from the 11 tokens of row 0, in the middle of a tile, and row 2 from 4 of row 1's."""
    weights, prompt, more = Weights(Shape()), TEXT[:11], TEXT[20:27]
    model = KernelGPT2(library, weights, precision, rows=3)
    model.read({0: prompt})
    forked, _ = model.read({0: [8], 1: more}, start=11, history={1: [0] * 11})
    again, _ = model.read({2: TEXT[:9]}, start=15, history={2: [0] * 11 + [1] * 4})
    one, _ = KernelGPT2(library, weights, precision).read({0: prompt + more})
    other, _ = KernelGPT2(library, weights, precision).read({0: prompt + more[:4] + TEXT[:9]})
    assert np.array_equal(forked[1:], one[11:])
    assert np.array_equal(again, other[15:])
