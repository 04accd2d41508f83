"""The trials that `--try` asks for: every combination of the values given for some settings."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable
from typing import Any

from gpt2tg.errors import UserError, did_you_mean
from gpt2tg.options.fields import Options, option_value


def read_trials(options: type[Options], entries: Iterable[str], allowed: Collection[str]) -> list[dict[str, Any]]:
    """Return the settings of each trial, for entries like `learning_rate=1e-5,5e-5`.

    The values of the last setting change fastest.

    Args:
        options: the option class that the settings belong to.
        allowed: the names of the settings that may be tried.

    Raises:
        UserError: an entry is not a name with values, a value has the wrong type, or a setting cannot be tried.
    """
    values: dict[str, list[Any]] = {}
    for entry in entries:
        name, equals, text = entry.partition("=")
        name = name.replace("-", "_")
        if name not in allowed:
            way_out = did_you_mean(name, allowed, "choose a setting that changes the training, not the text")
            raise UserError(f"{entry}: {name} cannot be tried: {way_out}", "try")
        try:
            found = [option_value(options, name, value) for value in text.split(",") if value]
        except UserError as error:
            raise UserError(f"{entry}: {error.message}", "try") from None
        if not equals or not found:
            raise UserError(f"{entry} has no values: write it like learning_rate=1e-5,5e-5", "try")
        known = values.setdefault(name, [])
        known += [value for value in found if value not in known]
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
