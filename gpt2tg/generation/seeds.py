"""The seed of a generation."""

from __future__ import annotations

import secrets
from dataclasses import replace

from gpt2tg.options import DecodingOptions


def with_seed(options: DecodingOptions) -> DecodingOptions:
    """Return the options with the seed to draw with: the given one, the one to replay, or a new one."""
    if replayed := options.replayed():
        return replace(options, replay=None, seed=replayed[0], num_sequences=1)
    if options.seed is None and options.strategy.samples:
        return replace(options, seed=new_seed())
    return options


def new_seed() -> int:
    """Return a random seed."""
    return secrets.randbelow(2**32)
