"""Parse JSON strictly: refuse what Python's json module would read wrongly or fail on without a clear reason."""

from __future__ import annotations

import json
import math
import re
from typing import Any

# int() raises a ValueError for more digits than sys.get_int_max_str_digits(), 4,300 by default.
MAX_DIGITS = 4000

SURROGATE = re.compile("[\ud800-\udfff]")


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: the text is not JSON, or an object names a key twice. The message starts with a verb:
            the caller puts the place before it.
    """
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        reason = error.msg.removesuffix(" at")
        raise ValueError(f"is not valid JSON ({reason} at character {error.colno})") from None
    except RecursionError:
        raise ValueError("is not valid JSON (nested too deeply)") from None


def parse_json_at(text: str, start: int) -> tuple[Any, int]:
    """Return the value that begins at a place in a text, and where it ends.

    Raises:
        json.JSONDecodeError: there is no complete JSON value.
        ValueError: an object names a key twice, or values are nested too deeply. The message starts with a verb.
    """
    try:
        return _DECODER.raw_decode(text, start)
    except RecursionError:
        raise ValueError("is not valid JSON (nested too deeply)") from None


def lone_surrogate(value: Any) -> str | None:
    r"""Return a lone surrogate in the strings of a JSON value, escaped as in JSON: `\ud83d` is half an emoji."""
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, str) and (found := SURROGATE.search(part)):
            return f"\\u{ord(found[0]):04x}"
        if isinstance(part, dict):
            pending += [*part.keys(), *part.values()]
        elif isinstance(part, list):
            pending += part
    return None


def refuse_lone_surrogates(value: Any) -> None:
    """Refuse a JSON value with a string that cannot be written as UTF-8.

    Raises:
        ValueError: a string holds a lone surrogate. The message starts with a verb, as above.
    """
    if escape := lone_surrogate(value):
        raise ValueError(f"holds {escape}, half of a character (an emoji cut in two): complete or remove it")


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"has two values named {duplicate}: rename or remove one")
    return result


def _integer(digits: str) -> int | float:
    """Return the number, or an infinity for more digits than Python converts."""
    if len(digits) <= MAX_DIGITS:
        return int(digits)
    return -math.inf if digits.startswith("-") else math.inf


_DECODER = json.JSONDecoder(object_pairs_hook=_object_without_duplicates, parse_int=_integer)
