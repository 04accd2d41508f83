"""Packing and products of the kernels, against torch in fp64, for this CPU and for AVX2."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gpt2tg.engine.cpu import kernels
from gpt2tg.engine.cpu.huge_pages import HugePages
from gpt2tg.engine.matrices import Panels, round_to_int8

PRECISIONS = ["fp32", "fp16", "int8"]


def random_matrix(inputs: int, outputs: int, seed: int = 0) -> Tensor:
    return torch.randn(inputs, outputs, generator=torch.Generator().manual_seed(seed))


def rounded(weight: Tensor, precision: str) -> Tensor:
    """Return (K, N) weights rounded to a precision, in fp64."""
    if precision == "int8":
        scale = weight.abs().amax(0).double() / 127
        return (weight.double() / scale).round() * scale
    return (weight.half() if precision == "fp16" else weight).double()


def rounded_inputs(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round tokens (T, K) as int8 does: the largest of each 64 inputs becomes 127.

    Returns:
        (T, groups, 64) integers and (T, groups) scales, in fp64.
    """
    groups = torch.nn.functional.pad(x, (0, -x.shape[1] % 64)).unflatten(1, (-1, 64))
    largest = groups.abs().amax(2)
    inverse = torch.where(largest > 0, 127 / largest, 0)
    return (groups.double() * inverse.double()[..., None]).round(), (largest / 127).double()


def inputs_of(x: Tensor, precision: str) -> Tensor:
    """Return (T, K) inputs of a product, rounded as its precision does, in fp64."""
    if precision != "int8":
        return x.double()
    integers, scale = rounded_inputs(x)
    return (integers * scale[..., None]).flatten(1)[:, : x.shape[1]]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (5, 16), (37, 45), (16, 32), (33, 3001)])
def test_packed_weights_equal_those_packed_by_torch(
    library: kernels.Kernels, inputs: int, outputs: int, stored: torch.dtype, is_transposed: bool, precision: str
) -> None:
    weight = (random_matrix(inputs, outputs) * 10.0 ** random_matrix(1, outputs, seed=1)).to(stored)
    weight[:, outputs // 2] = 0  # an output without any weight
    packed = Panels(weight.t().contiguous().t() if is_transposed else weight, precision, library, HugePages())
    expected = weight.to(packed.panels.dtype).float()
    if precision == "int8":
        scale, integers = round_to_int8(weight)
        assert torch.equal(packed.scale, scale)
        expected = integers * scale
    assert torch.equal(packed.columns(torch.arange(outputs)), expected.t())


def test_weights_with_two_strides_are_packed(library: kernels.Kernels) -> None:
    weight = random_matrix(40, 90)[::2, ::3]
    packed = Panels(weight, "fp32", library, HugePages())
    assert torch.equal(packed.columns(torch.arange(30)), weight.t())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("inputs", "outputs"), [(1, 1), (12, 36), (20, 7), (33, 32), (36, 108), (64, 31), (127, 65), (768, 50)]
)
def test_products_equal_those_in_fp64(library: kernels.Kernels, precision: str, inputs: int, outputs: int) -> None:
    weight, bias = random_matrix(inputs, outputs), random_matrix(1, outputs, seed=1)[0]
    matrix = Panels(weight, precision, library, HugePages())
    for with_bias in (False, True):
        matrix.bias = bias if with_bias else None
        for tokens in (1, 2, 5, 6, 7, 8, 9, 13, 20):
            x = random_matrix(tokens, inputs, seed=tokens)
            expected = inputs_of(x, precision) @ rounded(weight, precision) + (bias if with_bias else 0)
            rounding = 1e-6 * (x.abs().double() @ rounded(weight, precision).abs() + 3)
            assert ((matrix(x) - expected).abs() <= rounding).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_columns_are_the_rounded_weights(library: kernels.Kernels, precision: str) -> None:
    weight = random_matrix(20, 45)
    ids = torch.tensor([[0, 44, 31], [32, 15, 16]])
    columns = Panels(weight, precision, library, HugePages()).columns(ids)
    torch.testing.assert_close(columns.double(), rounded(weight, precision).t()[ids], rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [-1, 45])
def test_column_that_does_not_exist_is_an_error(library: kernels.Kernels, bad: int) -> None:
    packed = Panels(random_matrix(20, 45), "int8", library, HugePages())
    with pytest.raises(IndexError, match="a token is outside the vocabulary of 45"):
        packed.columns(torch.tensor([3, bad]))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_product_does_not_depend_on_other_tokens(library: kernels.Kernels, precision: str) -> None:
    matrix = Panels(random_matrix(345, 75), precision, library, HugePages())
    x = random_matrix(600, 345, seed=1)
    alone = torch.cat([matrix(token[None]) for token in x])
    for tokens in (*range(1, 21), 64, 255, 257, 600):
        assert torch.equal(matrix(x[:tokens]), alone[:tokens])


def test_int8_column_of_zeros_stays_zero(library: kernels.Kernels) -> None:
    weight = random_matrix(20, 40)
    weight[:, 3] = 0
    scale, integers = round_to_int8(weight)
    assert scale.isfinite().all()
    assert integers.abs().max() == 127
    assert Panels(weight, "int8", library, HugePages())(torch.ones(2, 20))[:, 3].tolist() == [0, 0]


def test_int8_product_has_the_same_bits_on_every_processor(library: kernels.Kernels) -> None:
    """Sums of a group are exact; those of all groups are added in fp32, one by one."""
    weight, x = random_matrix(300, 45), random_matrix(20, 300, seed=1)
    (scale, weights), (inputs, scales) = round_to_int8(weight), rounded_inputs(x)
    sums = torch.zeros(20, 45)
    for group, some in enumerate(weights.double().split(64)):
        products = inputs[:, group, : len(some)] @ some
        sums = (products * scales[:, group, None] + sums.double()).float()
    assert torch.equal(Panels(weight, "int8", library, HugePages())(x), sums * scale)


def test_int8_rounds_an_outlier_apart_from_distant_inputs(library: kernels.Kernels) -> None:
    weight, x = random_matrix(128, 40), random_matrix(1, 128, seed=1)
    x[0, 100] = 1e4
    x[0, 64:100] = x[0, 101:] = 0
    matrix = Panels(weight, "int8", library, HugePages())
    exact = x.double() @ matrix.columns(torch.arange(40)).double().t()
    assert (matrix(x) - exact).abs().max() < 0.3


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_int8_product_of_inputs_that_are_not_finite_is_not(library: kernels.Kernels, bad: float) -> None:
    """So that they are reported as an error, and no token is chosen by chance."""
    x = random_matrix(3, 150)
    x[1, 140] = bad
    product = Panels(random_matrix(150, 40, seed=1), "int8", library, HugePages())(x)
    assert not product[1].isfinite().any()
    assert product[[0, 2]].isfinite().all()


def test_int8_product_of_tiny_and_huge_inputs_is_finite(library: kernels.Kernels) -> None:
    weight = random_matrix(64, 40)
    matrix = Panels(weight, "int8", library, HugePages())
    for size in (1e-42, 1e-36, 1e33):
        x = random_matrix(1, 64, seed=1) * size
        expected = x.double() @ weight.double()
        assert (matrix(x) - expected).abs().max() <= max(0.1 * float(expected.abs().max()), 1e-29)
