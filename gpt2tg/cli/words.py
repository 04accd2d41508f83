"""The words of a command line: which values belong to which flag, and their decoding as UTF-8.

argparse accepts no value that begins with a dash, and Python decodes arguments as the locale says. Texts begin with
dashes and are UTF-8 in any locale, so the words are read here.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

# How many values a flag takes: none, exactly one, one or none, one or more.
Values = Literal["none", "one", "optional", "several"]


def pair_values(words: Sequence[str], takes: Mapping[str, Values]) -> list[tuple[str, list[str]]]:
    """Return each flag with its values, in their order; a word that belongs to no flag stands alone.

    The word after a flag that needs a value is its value, whatever it begins with. Further values end at the next
    word that looks like a flag. An optional value must not begin with a dash, unless an equals sign joins it.

    Args:
        takes: how many values each known flag takes.
    """
    rest = deque(words)
    found: list[tuple[str, list[str]]] = []
    while rest:
        name, equals, joined = with_underscores(rest.popleft()).partition("=")
        if name not in takes:
            found.append((name + equals + joined, []))
            continue
        count, values = takes[name], [joined] if equals else []
        needs_one = count in ("one", "several")
        if not values and rest and (needs_one or (count == "optional" and not rest[0].startswith("-"))):
            values.append(rest.popleft())
            while count == "several" and rest and not _looks_like_flag(rest[0], takes):
                values.append(rest.popleft())
        found.append((name, values))
    return found


def _looks_like_flag(word: str, known: Collection[str]) -> bool:
    """Whether a word is a flag or a mistyped flag; `---` and `-The` are neither."""
    return with_underscores(word).partition("=")[0] in known or re.match(r"--\w", word) is not None


def with_underscores(word: str) -> str:
    """Return `--batch_size=4` for `--batch-size=4`, and any word that is not a long flag as it is."""
    name, equals, value = word.partition("=")
    if not name.startswith("--") or name == "--" or " " in name:
        return word
    return "--" + name[2:].replace("-", "_") + equals + value


def as_utf8(word: str) -> str:
    """Decode the bytes of an argument as UTF-8 whatever the locale, or as the locale did if they are not UTF-8.

    Raises:
        UnicodeError: they are valid in neither, or hold half of a surrogate pair.
    """
    try:
        return os.fsencode(word).decode("utf-8")
    except UnicodeError:  # also if a Python caller passes a word that the locale cannot encode
        word.encode("utf-8")
        return word


def is_utf8_in_this_locale(name: str) -> bool:
    """Whether the locale encodes a file name as UTF-8; libraries outside Python accept only such names."""
    try:
        return os.fsencode(name) == name.encode("utf-8")
    except UnicodeEncodeError:
        return False
