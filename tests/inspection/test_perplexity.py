"""Perplexity."""

from __future__ import annotations

import math

import pytest

from gpt2tg.inspection.perplexity import perplexity


@pytest.mark.parametrize(
    ("loss", "expected"), [(0.0, 1.0), (math.log(50), 50.0), (701.0, math.inf), (math.inf, math.inf)]
)
def test_perplexity_is_e_to_the_loss(loss: float, expected: float) -> None:
    assert perplexity(loss) == pytest.approx(expected)


def test_perplexity_of_nan_is_nan() -> None:
    assert math.isnan(perplexity(math.nan))
