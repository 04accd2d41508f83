"""Which prompts are prefilled together: those of similar length, because all are padded to the longest one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

# Tokens of prompts, padding included, that are prefilled in one forward pass; more would take much memory.
PREFILL_TOKENS = 2**15

# A GPU reads so few tokens in the time that launching a forward pass takes, so that their padding costs nothing.
FREE_TOKENS = 512

Key = TypeVar("Key")


def prefill_groups(prompts: Mapping[Key, Sequence[int]]) -> Iterator[list[Key]]:
    """Divide prompts into groups of at most PREFILL_TOKENS tokens, of which padding is at most half.

    Yields:
        The keys of each group, the shortest prompts first; within a group in the order of `prompts`.
    """
    place = {key: number for number, key in enumerate(prompts)}
    group: list[Key] = []
    tokens = 0
    for key in sorted(prompts, key=lambda key: len(prompts[key])):
        length = len(prompts[key])
        padded = (len(group) + 1) * length
        is_mostly_padding = padded > FREE_TOKENS and padded > 2 * (tokens + length)
        if group and (padded > PREFILL_TOKENS or is_mostly_padding):
            yield sorted(group, key=place.__getitem__)
            group, tokens = [], 0
        group.append(key)
        tokens += length
    if group:
        yield sorted(group, key=place.__getitem__)
