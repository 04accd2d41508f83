"""Decoding options that have no effect beside the others, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from gpt2tg.options.decoding import DecodingOptions
from gpt2tg.options.fields import default_of
from gpt2tg.options.strategies import STRATEGIES

# Options that have no effect unless one of these others is set.
NEEDS = {
    "penalty_window": ("repetition_penalty", "presence_penalty", "frequency_penalty"),
    "keep_stop": ("stop",),
}


def unused_options(given: Iterable[str], options: DecodingOptions) -> list[str]:
    """Return those of the given names that have no effect with the chosen strategy, in the order of the fields."""
    unused = {name for strategy in STRATEGIES.values() for name in strategy.uses} - set(options.strategy.uses)
    if options.temperature == 0:
        unused -= {"temperature"}
    for name, others in NEEDS.items():
        if all(getattr(options, other) == default_of(DecodingOptions, other) for other in others):
            unused.add(name)
    return [field.name for field in dataclasses.fields(options) if field.name in unused.intersection(given)]


def why_unused(name: str, options: DecodingOptions) -> str:
    """Return the reason why an option has no effect."""
    if name in NEEDS:
        return "it does nothing without " + " or ".join(f"--{other}" for other in NEEDS[name])
    if options.temperature == 0:
        return "--temperature 0 is greedy"
    return f"--decoding {options.decoding} does not use it"
