"""The fields of option classes: each states a default, a help text and a range, and refuses every other value."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass
from typing import Any, Literal

from gpt2tg.errors import UserError, did_you_mean, one_line
from gpt2tg.options.escapes import read_escapes

# The largest count. Torch counts in 64 bits, but sizes are products of several counts.
LARGEST_COUNT = 2**31 - 1

# The largest seed that torch, numpy and transformers all accept.
LARGEST_SEED = 2**32 - 1

# Larger values have no further effect, and their sums and powers would overflow.
LARGEST_NUMBER = 1_000_000
LARGEST_POWER = 20

# What a value of each plain type is called in messages.
EXPECTED = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a string",
    tuple: "a tuple of strings",
}

# What the ends of a range are called in messages.
RANGE_WORDS = {"low": "at least {}", "above": "more than {}", "high": "at most {}", "below": "less than {}"}


def option(
    default: Any,
    help: str,
    *,
    group: str,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    choices: Any = None,
    flag_value: Any = None,
    metavar: str | None = None,
    shown_default: str | None = None,
    is_text: bool = False,
    is_common: bool = False,
    is_required: bool = False,
    accepts_string: bool = False,
    lists_choices: bool = True,
) -> Any:
    r"""Return a dataclass field that describes and checks itself.

    Args:
        group: the heading that the flag stands under in the help.
        low: the smallest allowed value; `high` is the largest. `above` and `below` exclude the end itself.
        choices: the `Literal` of the annotation, whose values are the only ones allowed.
        flag_value: the value when the flag is given without one.
        metavar: the placeholder for the value in the help.
        shown_default: replaces the default in the help.
        is_text: the value becomes part of a text, so `\n` and `\t` are read as escapes where it is typed.
        is_common: the flag is one of the few that most people need; `--help` shows only these.
        is_required: the command fails without this flag.
        accepts_string: the Python API accepts one string for a tuple of one.
        lists_choices: the help lists all choices; off where there are too many, and `help` names the usual ones.
    """
    metadata = dict(
        help=help, group=group, low=low, above=above, high=high, below=below,
        choices=typing.get_args(choices) or None, flag_value=flag_value, metavar=metavar, shown_default=shown_default,
        is_text=is_text, is_common=is_common, is_required=is_required, accepts_string=accepts_string,
        lists_choices=lists_choices,
    )  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Options:
    """The base of all option classes. Building one checks the type and the range of every value.

    Raises:
        UserError: names the first option that is wrong, its value and what to give instead.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            checked = check_value(type(self), field, value)
            if checked is not value:
                object.__setattr__(self, field.name, checked)


def check_value(options: type[Options], field: Field[Any], value: Any) -> Any:
    """Return the value as the option class stores it: several strings as a tuple.

    Raises:
        UserError: the value has the wrong type, is no choice, or is out of range.
    """
    name, rule = field.name.rstrip("_"), field.metadata
    kind, is_optional = type_of(options, field.name)
    if value is None and is_optional:
        return None
    given = value
    if kind is tuple:
        value = _as_tuple(given, rule["accepts_string"])
    if not _has_type(value, kind):
        expected = f"one of {', '.join(rule['choices'])}" if rule["choices"] and kind is str else EXPECTED[kind]
        raise UserError(f"{shown(repr(given))} is not valid: give {expected}{' or None' * is_optional}", name, given)
    if rule["choices"]:
        _check_choices(value if kind is tuple else (value,), rule["choices"], name)
    if kind in (int, float) and not _is_within(value, rule):
        raise UserError(f"{value} is out of range: it must be {_range_in_words(rule, value)}", name)
    return value


def _check_choices(values: Sequence[str], choices: Sequence[str], name: str) -> None:
    for value in values:
        if value not in choices:
            begun = next((choice for choice in choices if len(value) > 2 and choice.startswith(value)), value)
            way_out = did_you_mean(begun, choices, f"choose from {', '.join(choices)}")
            raise UserError(f"{one_line(value, 40)} is unknown: {way_out}", name)


def _as_tuple(value: Any, accepts_string: bool) -> Any:
    if isinstance(value, str) and accepts_string:
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _has_type(value: Any, kind: type) -> bool:
    """Whether a value has the plain type of an option. True and False are not numbers here; numpy's numbers are."""
    if kind is tuple:
        return isinstance(value, tuple) and all(isinstance(part, str) for part in value)
    if kind in (int, float):
        abstract = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, abstract) and not isinstance(value, bool)
    return isinstance(value, kind)


def shown(value: str, longest: int = 40) -> str:
    """Return a value as messages show it: not more than its beginning."""
    return value if len(value) <= longest else f"{value[: longest - 3]}..."


def _is_within(value: float, rule: Mapping[str, Any]) -> bool:
    return (
        (isinstance(value, int) or math.isfinite(value))  # isfinite() would overflow at a long whole number
        and not _is_too_large_a_count(value, rule)
        and (rule["low"] is None or value >= rule["low"])
        and (rule["above"] is None or value > rule["above"])
        and (rule["high"] is None or value <= rule["high"])
        and (rule["below"] is None or value < rule["below"])
    )


def _is_too_large_a_count(value: float, rule: Mapping[str, Any]) -> bool:
    return rule["high"] is None and isinstance(value, int) and value > LARGEST_COUNT


def _range_in_words(rule: Mapping[str, Any], value: float) -> str:
    ends = {**rule, "high": LARGEST_COUNT} if _is_too_large_a_count(value, rule) else rule
    parts = [words.format(ends[end]) for end, words in RANGE_WORDS.items() if ends[end] is not None]
    return " and ".join(parts if isinstance(value, int) or math.isfinite(value) else [*parts, "finite"])


@functools.cache
def _types(options: type) -> dict[str, tuple[type, bool]]:
    """Return the plain type of every field of an option class, and whether it may be None."""
    found = {}
    for name, hint in typing.get_type_hints(options).items():
        parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        plain = next(part for part in parts if part is not types.NoneType)
        found[name] = {Literal: str, tuple: tuple}.get(typing.get_origin(plain), plain), types.NoneType in parts
    return found


def type_of(options: type[Options], name: str) -> tuple[type, bool]:
    """Return the plain type of an option, and whether it may be None."""
    return _types(options)[name]  # type: ignore[arg-type]  # mypy looks for the hash of an instance, not of the class


def plain_type(options: type[Options], name: str) -> type:
    """Return the type of an option without its `| None`; `tuple` for an option that takes several strings."""
    return type_of(options, name)[0]


def field_of(options: type[Options], name: str) -> Field[Any]:
    """Return the field of an option class that has this name."""
    return next(field for field in dataclasses.fields(options) if field.name == name)


def default_of(options: type[Options], name: str) -> Any:
    """Return the default of an option."""
    return field_of(options, name).default


def only(options: type[Options], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the values that belong to an option class."""
    names = {field.name for field in dataclasses.fields(options)}
    return {name: value for name, value in values.items() if name in names}


def option_value(options: type[Options], name: str, text: str) -> Any:
    """Read the value of an option from a text, as in `name=text`. `off` and `none` switch an option off.

    Raises:
        UserError: the text is not a value of the option's type.
    """
    kind, default = plain_type(options, name), default_of(options, name)
    if text.lower() in ("off", "none") and default in (None, (), False):
        return default
    if field_of(options, name).metadata["is_text"]:
        text = read_escapes(text)
    if kind is tuple:
        return (text,)
    if kind is bool:
        if text.lower() in ("on", "true"):
            return True
        raise UserError(f"{text} is not valid: give on or off", name)
    if kind in (int, float):
        return number_from(text, kind, name)
    return text


def number_from(text: str, kind: type, name: str) -> Any:
    """Read a number of this kind, `int` or `float`, from a text.

    Raises:
        UserError: the text is not such a number.
    """
    try:
        return kind(text)
    except ValueError:
        shown = text if len(text) <= 40 else f"{text[:37]}..."
        raise UserError(f"{shown} is not valid: give {EXPECTED[kind]}", name) from None
