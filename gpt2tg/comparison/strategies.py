"""Read `--strategies`: which strategies to compare, each with settings of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from gpt2tg.errors import UserError, did_you_mean, nearest
from gpt2tg.options import STRATEGIES, DecodingOptions, option_value, unused_options, why_unused


def parse_strategies(
    base: DecodingOptions, chosen: str | None, say: Callable[[str], None]
) -> dict[str, DecodingOptions]:
    """Return the options of each strategy to compare, by the name it is shown under.

    Args:
        base: options that all of them share. A strategy that cannot return `base.sequences` texts returns fewer.
        chosen: the value of `--strategies`, such as `greedy,top_p:temperature=0.9`; None means all strategies.
        say: receives notices of settings that a strategy does not use.

    Raises:
        UserError: unknown strategy or setting, or a value out of range.
    """
    found = {}
    for entry in list(STRATEGIES) if chosen is None else chosen.split(","):
        name, *words = entry.strip().split(":")
        if name not in STRATEGIES:
            hint = did_you_mean(name, STRATEGIES, f"choose from {', '.join(STRATEGIES)}")
            raise UserError(f"{name or 'an empty name'} is unknown: {hint}", "strategies")
        options = _with_settings(replace(base, decoding=name, num_sequences=None), words, entry)
        sequences = min(base.sequences, options.most_sequences)
        found[" ".join([name, *words])] = replace(options, num_sequences=int(sequences))
        own = [word.partition("=")[0] for word in words]
        for unused in unused_options(own, options):
            say(f"--strategies {entry}: {unused} is not used: {why_unused(unused, options)}")
    return found


def _with_settings(options: DecodingOptions, words: Sequence[str], entry: str) -> DecodingOptions:
    """Return the options changed by the `name=value` words of one entry."""
    names = {field.name for field in dataclasses.fields(DecodingOptions)} - {"decoding", "num_sequences", "replay"}
    given: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or name not in names:
            near = nearest(name, names)
            raise UserError(
                f"{entry}: {word} is not a setting: "
                + (f"did you mean {near}=...?" if near else "write settings like top_p:temperature=0.7:top_p=0.9"),
                "strategies",
            )
        try:
            given[name] = option_value(DecodingOptions, name, text)
        except UserError as error:
            raise UserError(f"{entry}: {error}", "strategies") from None
    if "max_new_tokens" in given or "max_length" in given:  # one replaces the other, also where `options` has it
        given = {"max_new_tokens": None, "max_length": None, **given}
    try:
        return replace(options, **given)
    except UserError as error:
        raise UserError(f"{entry}: {error}", "strategies") from None
