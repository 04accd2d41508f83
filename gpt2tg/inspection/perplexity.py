"""Perplexity, from a mean loss."""

from __future__ import annotations

import math


def perplexity(loss: float) -> float:
    """Return e to the power of a mean loss in nats per token: infinity if that overflows, NaN if the loss is NaN."""
    return math.inf if loss > 700 else math.exp(loss)
