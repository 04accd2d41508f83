"""Which strategies are compared, with which settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import replace

from gpt2tg.errors import UserError, did_you_mean, nearest
from gpt2tg.options import STRATEGIES, DecodingOptions, option_value, unused_options, why_unused


def strategies_to_compare(
    base: DecodingOptions, chosen: str | None, say: Callable[[str], None]
) -> dict[str, DecodingOptions]:
    """What is compared, under the name it is shown by.

    Args:
        base: settings that all of them share; as many texts as it asks for, or fewer where a strategy gives fewer.
        chosen: what was written after `--strategies`, or None for all there are.

    Raises:
        UserError: no such strategy or setting, or a value that is out of range.
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
    """The options after `name=value` words of one entry."""
    names = {f.name for f in dataclasses.fields(DecodingOptions)} - {"decoding", "num_sequences", "replay"}
    given = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or name not in names:
            near = nearest(name, names)
            raise UserError(
                f"{entry}: {word} is no setting: "
                + (f"did you mean {near}=...?" if near else "write it like top_p:temperature=0.7:top_p=0.9"),
                "strategies",
            )
        try:
            given[name] = option_value(DecodingOptions, name, text)
        except UserError as error:
            raise UserError(f"{entry}: {error}", "strategies") from None
    if "max_new_tokens" in given or "max_length" in given:  # a length named here takes the place of the other one
        given = {"max_new_tokens": None, "max_length": None, **given}
    try:
        return replace(options, **given)
    except UserError as error:
        raise UserError(f"{entry}: {error}", "strategies") from None
