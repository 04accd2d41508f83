"""From the settings of the page to decoding options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gpt2tg.desk.settings import NOT_ON_THE_PAGE, PAGE_DEFAULTS, settings_on_the_page, without_dashes
from gpt2tg.errors import UserError, did_you_mean, one_line
from gpt2tg.options import (
    SESSION_NEW_TOKENS,
    DecodingOptions,
    default_of,
    unused_options,
    why_unused,
)
from gpt2tg.serving.completion_request import MOST_STRINGS, with_defaults
from gpt2tg.serving.errors import ApiError, from_user_error
from gpt2tg.serving.models import ServedModel

STRINGS = ("stop", "ban_words", "bias")


@dataclass(frozen=True)
class PageOptions:
    """The options of a request, and what the user should know about them."""

    options: DecodingOptions
    warnings: list[str]


def page_defaults(model: ServedModel) -> dict[str, Any]:
    """Return the decoding options for what the page leaves out."""
    found = {name: value for name, value in model.defaults.items() if name not in NOT_ON_THE_PAGE}
    if "max_length" not in found:
        found.setdefault("max_new_tokens", min(SESSION_NEW_TOKENS, model.generator.model.shape.n_positions // 2))
    return {**PAGE_DEFAULTS, **found}


def check_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that are not null.

    Raises:
        ApiError: one is unknown, or has too many strings.
    """
    known = [field.name for field in settings_on_the_page()]
    for name, value in settings.items():
        if name not in known:
            shown = one_line(name, 40)
            way_out = did_you_mean(name, known, "/api/state lists all settings")
            raise ApiError(400, f"{shown} is an unknown setting: {way_out}", shown, "unknown_field")
        if name in STRINGS and isinstance(value, list) and len(value) > MOST_STRINGS:
            message = f"{name} has {len(value):,} strings: give at most {MOST_STRINGS}"
            raise ApiError(400, message, name, "invalid_value")
    return {name: value for name, value in settings.items() if value is not None}


def check_settings(settings: Mapping[str, Any], model: ServedModel) -> dict[str, Any]:
    """Return the settings of a text that are not null.

    Raises:
        ApiError: names the setting that is wrong.
    """
    page_options(settings, model, 1)
    return check_names(settings)


def page_options(settings: Mapping[str, Any], model: ServedModel, count: int) -> PageOptions:
    """Return the options for so many texts, or for as many as the strategy gives.

    Raises:
        ApiError: names the setting that is wrong.
    """
    given = check_names(settings)
    try:
        options = with_defaults(given, {**page_defaults(model), "num_sequences": 1})
        most = 1 if options.replay is not None else options.most_sequences
        options = replace(options, num_sequences=int(min(count, most)))
    except UserError as error:
        raise from_user_error(error, {}) from None
    changed = [name for name in given if given[name] not in (default_of(DecodingOptions, name), [])]
    warnings = [
        without_dashes(f"{name} is not used: {why_unused(name, options)}") for name in unused_options(changed, options)
    ]
    if options.sequences < count:
        what = "a recorded text" if options.replay is not None else options.decoding
        warnings.append(f"{what} gives {options.sequences} of the {count} texts")
    return PageOptions(options, warnings)
