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
    """Return the weights rounded to a precision, in fp64."""
    if precision == "int8":
        scale = weight.abs().amax(0).double() / 127
        return (weight.double() / scale).round() * scale
    return (weight.half() if precision == "fp16" else weight).double()


def in_panels(weight: Tensor, panel: int) -> Tensor:
    """Pack with torch: (K, N) -> (panels, K, panel width)."""
    padded = torch.nn.functional.pad(weight, (0, -weight.shape[1] % panel))
    return padded.unflatten(1, (-1, panel)).transpose(0, 1)


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
    if precision == "int8":
        scale, weight = round_to_int8(weight)
        assert torch.equal(packed.scale, scale)
    weight = weight.to(packed.panels.dtype)
    assert torch.equal(packed.panels, in_panels(weight, library.panel))


def test_weights_with_two_strides_are_packed(library: kernels.Kernels) -> None:
    weight = random_matrix(40, 90)[::2, ::3]
    packed = Panels(weight, "fp32", library, HugePages())
    assert torch.equal(packed.panels, in_panels(weight, library.panel))


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
            expected = x.double() @ rounded(weight, precision) + (bias if with_bias else 0)
            rounding = 1e-6 * (x.abs().double() @ rounded(weight, precision).abs() + 3)
            assert ((matrix(x) - expected).abs() <= rounding).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_columns_are_the_rounded_weights(library: kernels.Kernels, precision: str) -> None:
    weight = random_matrix(20, 45)
    ids = torch.tensor([[0, 44, 31], [32, 15, 16]])
    columns = Panels(weight, precision, library, HugePages()).columns(ids)
    torch.testing.assert_close(columns.double(), rounded(weight, precision).t()[ids], rtol=1e-6, atol=0)


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
