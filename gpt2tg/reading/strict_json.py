"""JSON as other people write it: what cannot be read, or would be read wrongly, is refused with the reason."""

from __future__ import annotations

import json
import math
import re
from typing import Any

# Python refuses to make an integer of more digits, and nobody means one.
MOST_DIGITS = 4000

HALF_A_CHARACTER = re.compile("[\ud800-\udfff]")


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: says what is wrong, as the rest of a sentence about the text.
    """
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON ({error.msg.removesuffix(' at')} at character {error.colno})") from None
    except RecursionError:
        raise ValueError("is no JSON that can be read (nested too deep)") from None


def half_character(value: Any) -> str | None:
    r"""A lone surrogate in the texts of a JSON value, as JSON writes it: `\ud83d` is half an emoji."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str) and (found := HALF_A_CHARACTER.search(part)):
            return f"\\u{ord(found[0]):04x}"
        if isinstance(part, dict):
            waiting += [*part.keys(), *part.values()]
        elif isinstance(part, list):
            waiting += part
    return None


def refuse_half_characters(value: Any) -> None:
    """Refuse a JSON value with a text that cannot be written as UTF-8.

    Raises:
        ValueError: says what is wrong, as the rest of a sentence about the value.
    """
    if code := half_character(value):
        raise ValueError(f"holds {code}, half of a character (an emoji cut in two): complete or remove it")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"has two values named {twice}: rename or remove one")
    return found


def _whole_number(digits: str) -> int | float:
    if len(digits) <= MOST_DIGITS:
        return int(digits)
    return -math.inf if digits.startswith("-") else math.inf


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole_number)
