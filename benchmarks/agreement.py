"""Compare generated texts with those of a reference, token by token. Standard library only."""

from __future__ import annotations

Ids = list[list[int]]
"""Rows of token ids."""


def agreement(texts: Ids, expected: Ids) -> dict:
    """Return how many texts equal the expected ones, and the first token that differs in any (None: none does)."""
    first = [
        next((place for place, pair in enumerate(zip(text, other, strict=False)) if pair[0] != pair[1]), None)
        if len(text) == len(other)
        else min(len(text), len(other))
        for text, other in zip(texts, expected, strict=True)
    ]
    different = [place for place in first if place is not None]
    return {
        "equal_texts": len(first) - len(different),
        "texts": len(first),
        "first_difference": min(different, default=None),
    }
