"""The ways to hold a matrix, against products in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gpt2tg.engine.matrices import Matrix, PackedFp16, PackedInt8, Plain, SplitSum, round_to_int8

packed = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="torch has no FBGEMM here"
)


def random_matrix(inputs: int, outputs: int, seed: int = 0) -> Tensor:
    return torch.randn(inputs, outputs, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("inputs", [4, 20, 37, 768])
@pytest.mark.parametrize("with_bias", [False, True])
def test_split_sum_equals_the_product(inputs: int, with_bias: bool) -> None:
    weight = random_matrix(inputs, 45)
    split, plain = SplitSum(weight), Plain(weight)
    split.bias = plain.bias = torch.arange(45.0) if with_bias else None
    for tokens in (1, 2, 5, 6, 20):
        x = random_matrix(tokens, inputs, seed=tokens)
        torch.testing.assert_close(split(x), plain(x), rtol=1e-5, atol=1e-4)
        expected = x.double() @ weight.double() + (torch.arange(45.0) if with_bias else 0)
        torch.testing.assert_close(split(x).double(), expected, rtol=1e-5, atol=1e-4)


@packed
@pytest.mark.parametrize(("inputs", "outputs"), [(12, 36), (33, 7), (64, 300)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_packed_products_are_near_those_of_rounded_weights(inputs: int, outputs: int, with_bias: bool) -> None:
    weight, bias = random_matrix(inputs, outputs), random_matrix(1, outputs, seed=1)[0] if with_bias else None
    scale, rounded = round_to_int8(weight)
    held: list[tuple[Matrix, Tensor]] = [
        (PackedFp16(weight), weight.half().double()),
        (PackedInt8(weight), (rounded * scale).double()),
    ]
    for matrix, known in held:
        matrix.bias = bias
        ids = torch.tensor([[0, outputs - 1], [3, 2]])
        torch.testing.assert_close(matrix.columns(ids).double(), known.t()[ids], rtol=1e-6, atol=1e-7)
        for tokens in (1, 2, 7):
            x = random_matrix(tokens, inputs, seed=tokens)
            expected = x.double() @ known + (0 if bias is None else bias)
            # Where the inputs are rounded to 7 bits, each may be half a unit off.
            half = (x.max() - x.min()) / 127 / 2 if isinstance(matrix, PackedInt8) else 1e-6
            assert ((matrix(x) - expected).abs() <= half * known.abs().sum(0) + 1e-5).all()
