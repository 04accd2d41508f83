"""What a decoder asks of a model, and what a decoder and its caller say to each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Rows(Protocol):
    """Texts side by side in a model, a row each."""

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read prompts, a row each. Returns (B, V) logits of the next token."""

    def step(self, tokens: Tensor) -> Tensor:
        """Append (B,) tokens, one to each row. Returns (B, V) logits of the next token."""

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may be named more than once."""


# (B, V) logits and the ids of each row so far, the prompt included -> (B, V) logits.
Filter = Callable[[Tensor, Sequence[Sequence[int]]], Tensor]

# The sample that got a token, and the token -> why the sample ends with it ("eos", "length"), or None.
Finish = Callable[[int, int], str | None]


@dataclass(frozen=True)
class Token:
    """One token of one sample."""

    sample: int
    id: int
    logprob: float
    """Log-probability under the model itself, before any filter, in nats."""
    finish_reason: str | None
    """Why the sample ends here; None while it goes on."""


class NotFiniteError(ValueError):
    """The model computed something that is no number."""


def require_finite(logits: Tensor, step: int) -> None:
    """Refuse NaN and plus infinity: a token chosen from them would be invented. Minus infinity is a ban.

    Raises:
        NotFiniteError: names the step.
    """
    if torch.isnan(logits).any() or torch.isposinf(logits).any():
        raise NotFiniteError(f"the model's logits are not finite at new token {step}: its weights are broken")


def apply(filters: Sequence[Filter], logits: Tensor, histories: Sequence[Sequence[int]]) -> Tensor:
    """Filters in their order. (B, V) -> (B, V)"""
    for change in filters:
        logits = change(logits, histories)
    return logits
