"""Options whose strings have a form of their own.

`WORD=X` of `--bias`, `NAME=X` of `--lr_scheduler_kwargs`, `SEED/PROMPT/SAMPLE` of `--replay`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from gpt2tg.errors import UserError
from gpt2tg.options.fields import LARGEST_NUMBER


def read_biases(entries: Iterable[str]) -> dict[str, float]:
    """Read `word=number` entries: what to add to the logit of each word.

    Raises:
        UserError: an entry without a word, or without a finite number.
    """
    found = {}
    for entry in entries:
        word, _, number = entry.rpartition("=")
        try:
            found[word] = float(number)
        except ValueError:
            found[word] = math.nan
        if not word or not abs(found[word]) <= LARGEST_NUMBER:
            raise UserError(
                f"{entry} is not a word and a number: write it like dragon=+2, within {LARGEST_NUMBER:g} of 0", "bias"
            )
    return found


def read_settings(entries: Iterable[str], option: str, example: str) -> dict[str, bool | float | str]:
    """Read `name=value` entries: whole numbers, numbers, True and False, and everything else as text.

    Args:
        option: the option that holds the entries, for messages.
        example: a valid entry, for messages.

    Raises:
        UserError: an entry is not of this form, names a setting twice, or has a number that is not finite.
    """
    found: dict[str, bool | float | str] = {}
    for entry in entries:
        name, equals, text = entry.partition("=")
        if not name.isidentifier() or not equals or not text:
            raise UserError(f"{entry} is not of the form name=value: write it like {example}", option)
        if name in found:
            raise UserError(f"{entry}: {name} is given twice: leave one out", option)
        value = found[name] = _read_value(text)
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{entry}: give a finite number", option)
    return found


def _read_value(text: str) -> bool | float | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def read_replay(text: str) -> tuple[int, int, int]:
    """Read the seed, the prompt number and the sample number from `SEED/PROMPT/SAMPLE`.

    Raises:
        UserError: the text is not three whole numbers.
    """
    parts = text.split("/")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise UserError(f"{text} is not a sample: write seed, prompt and sample number like 7/0/2", "replay")
    seed, prompt, sample = map(int, parts)
    return seed, prompt, sample


def is_utf8(text: str) -> bool:
    """Whether a text can be encoded as UTF-8: it holds neither undecodable bytes nor half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
