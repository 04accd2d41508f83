"""The words of a command line: which flag each belongs to, and the text that it is.

argparse takes no value that begins with a dash, and knows no text but that of the locale. So the words are read here,
and argparse writes the help text.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Collection, Mapping, Sequence

# How many values a flag takes, as argparse has it: 0, None for one, "?" for one or none, "+" for one or more.
Nargs = int | str | None

# What a backslash and a letter stand for in texts that are typed.
ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}


def pair_values(words: Sequence[str], nargs: Mapping[str, Nargs]) -> list[tuple[str, list[str]]]:
    """Return the flags with their values, in their order; a word that belongs to no flag stands alone.

    The word after a flag that needs a value is its value, whatever it begins with. Further values end at the next
    word that looks like a flag. An optional value begins with no dash, unless it is joined by an equals sign.
    """
    rest, found = deque(words), []
    while rest:
        name, equals, joined = with_underscores(rest.popleft()).partition("=")
        if name not in nargs:
            found.append((name + equals + joined, []))
            continue
        takes, values = nargs[name], [joined] if equals else []
        if not values and rest and (takes in (None, "+") or (takes == "?" and not rest[0].startswith("-"))):
            values.append(rest.popleft())
            while takes == "+" and rest and not _looks_like_flag(rest[0], nargs):
                values.append(rest.popleft())
        found.append((name, values))
    return found


def _looks_like_flag(word: str, known: Collection[str]) -> bool:
    """Whether a word is a flag, or a mistyped one: `---` and `-The` are none."""
    return with_underscores(word).partition("=")[0] in known or re.match(r"--\w", word) is not None


def with_underscores(word: str) -> str:
    """`--batch-size=4` as `--batch_size=4`; anything that is no long flag is left alone."""
    name, equals, value = word.partition("=")
    if not name.startswith("--") or name == "--" or " " in name:
        return word
    return "--" + name[2:].replace("-", "_") + equals + value


def as_utf8(word: str) -> str:
    """Decode the bytes of a word as UTF-8 whatever the locale, or as the locale does where they are not UTF-8.

    Raises:
        UnicodeError: they are neither; or half a character, such as one of the two halves of an emoji.
    """
    try:
        return os.fsencode(word).decode("utf-8")
    except UnicodeError:  # also where a caller in Python gives a word that the locale cannot write
        word.encode("utf-8")
        return word


def is_utf8_in_this_locale(name: str) -> bool:
    """Whether the locale writes the name of a file as UTF-8 does; libraries outside Python know no other way."""
    try:
        return os.fsencode(name) == name.encode("utf-8")
    except UnicodeEncodeError:
        return False


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8: it holds no byte that was none, and no half of an emoji."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_escapes(text: str) -> str:
    r"""Replace `\n` by a line break, `\t` by a tab and `\\` by a backslash; other backslashes stay."""
    return re.sub(r"\\[nt\\]", lambda found: ESCAPES[found[0]], text)


def write_escapes(text: str) -> str:
    """Write a text so that `read_escapes` gives it back."""
    text = re.sub(r"\\(?=[nt\\]|$)", r"\\\\", text)
    return text.replace("\n", r"\n").replace("\t", r"\t")
