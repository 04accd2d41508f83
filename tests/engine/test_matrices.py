"""The ways to hold a matrix, against products in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gpt2tg.engine.matrices import Matrix, PackedFp16, PackedInt8, Plain, SplitSum, Vocabulary, round_to_int8

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


@pytest.mark.parametrize("size", [1, 45, 64, 300])
def test_vocabulary_is_padded_and_gives_the_logits_of_its_tokens(size: int) -> None:
    weight, x = random_matrix(20, size), random_matrix(3, 20, seed=1)
    vocabulary, plain = Vocabulary(weight), Plain(weight)
    assert vocabulary.weight.shape[1] % 64 == 0
    torch.testing.assert_close(vocabulary(x), plain(x))
    ids = torch.tensor([[0, size - 1]])
    assert torch.equal(vocabulary.columns(ids), plain.columns(ids))


def test_logits_from_16_bits_are_not_rounded_to_16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Around -100, numbers in fp16 are 1/16 apart. Torch's product with an output of 32 bits runs on CUDA only."""
    monkeypatch.setattr(torch, "mm", lambda a, b, out_dtype: a.to(out_dtype) @ b.to(out_dtype))
    weight = (random_matrix(64, 300) - 12).half()
    x = torch.full((2, 64), 1 / 8).half()
    expected = x.double() @ weight.double()
    assert expected.max() < -64
    torch.testing.assert_close(Vocabulary(weight)(x).double(), expected, rtol=0, atol=1e-3)


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
