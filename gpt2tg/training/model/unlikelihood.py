"""Unlikelihood of repeated n-grams: a loss on the tokens that a model should not repeat (Welleck et al. 2020).

Where the last tokens occurred before in the example, the token that followed them then is a negative candidate c,
unless it is the next token here too. The loss grows by -alpha · log(1 - p(c)). A model that is trained with it loops
less when the most probable token is taken: a loop begins where such a candidate is chosen.

Shapes: B blocks of T tokens, R rows (positions) of a chunk, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# The tokens that must have occurred before; with the candidate they are a repeated trigram.
CONTEXT = 2

# log(1 - p) and its gradient stay finite for a probability of one.
SMALLEST_REST = 1e-5

NONE = -1


@dataclass(frozen=True)
class Unlikelihood:
    """The loss on repeated n-grams of a batch."""

    alpha: float
    candidates: Tensor
    """(B·T,) the negative candidate of each position, or NONE."""

    @classmethod
    def of(cls, alpha: float, tokens: Tensor, position_ids: Tensor | None) -> Unlikelihood:
        """Return the loss of a batch.

        Args:
            tokens: (B, T)
            position_ids: (B, T), 0 where an example starts; None if each block is one example.
        """
        return cls(alpha, repeating_tokens(tokens, position_ids).flatten())

    def add_gradient(self, probabilities: Tensor, labels: Tensor, start: int) -> Tensor:
        """Add the gradient with respect to the logits to that of the cross entropy, but for the label, in place.

        Args:
            probabilities: (R, V) of a chunk of the B·T rows, which is the gradient so far.
            labels: (R,) the next tokens; negative in rows without one.
            start: the number of the first row.

        Returns:
            (): the summed loss.
        """
        candidates = self.candidates[start : start + len(labels), None]  # (R, 1)
        counts = (candidates != NONE) & (candidates != labels[:, None]) & (labels[:, None] >= 0)
        candidates = candidates.clamp(min=0)
        found = probabilities.gather(1, candidates).masked_fill(~counts, 0)
        rest = (1 - found).clamp(min=SMALLEST_REST)
        odds = self.alpha * found / rest
        probabilities.mul_(1 - odds).scatter_add_(1, candidates, odds)
        return -self.alpha * rest.log().sum()


def repeating_tokens(tokens: Tensor, position_ids: Tensor | None) -> Tensor:
    """Return (B, T) the token that followed the last occurrence of the same CONTEXT tokens in the example, or NONE."""
    length = tokens.shape[1]
    examples = torch.zeros_like(tokens) if position_ids is None else (position_ids == 0).cumsum(dim=1)
    is_same = (tokens[:, :, None] == tokens[:, None, :]) & (examples[:, :, None] == examples[:, None, :])
    matches = is_same.clone()  # (B, T, T): the tokens up to t are those up to j
    for back in range(1, CONTEXT):
        matches[:, back:, back:] &= is_same[:, :-back, :-back]
        matches[:, :back] = False
        matches[:, :, :back] = False
    places = torch.arange(length, device=tokens.device).expand_as(matches)
    last = places.masked_fill(~matches.tril(-1), NONE).amax(dim=2)  # (B, T)
    return tokens.gather(1, last + 1).masked_fill(last == NONE, NONE)
