"""Read the words after a command."""

from __future__ import annotations

import io
import shlex

from gpt2tg.errors import UserError


def shell_words(words: str) -> list[str]:
    """Split words as a shell does: quotes hold a value with spaces together.

    Raises:
        UserError: a quote is not closed.
    """
    found = []
    while words.strip():
        word, words = first_shell_word(words)
        found.append(word)
    return found


def first_shell_word(words: str) -> tuple[str, str]:
    """Return the first word, read as a shell does, and the unchanged rest.

    Raises:
        UserError: a quote is not closed.
    """
    stream = io.StringIO(words)
    reader = shlex.shlex(stream, posix=True, punctuation_chars=False)
    reader.whitespace_split, reader.commenters, reader.escape = True, "", ""
    try:
        word = reader.get_token()
    except ValueError as error:
        raise UserError(f"{words} cannot be read: {error}") from None
    return word or "", stream.read().lstrip()


def parse_number(words: str, largest: int | None, what: str) -> int:
    """Return the number from 1 to `largest` that was typed.

    Args:
        largest: None if there is no limit.
        what: what the number stands for, for the error message.

    Raises:
        UserError: no number, or out of range.
    """
    if not words.isdecimal() or int(words) < 1 or (largest is not None and int(words) > largest):
        allowed = "1 or more" if largest is None else f"1 to {largest}"
        problem = f"{words} is not a valid {what}" if words else f"the {what} is missing"
        raise UserError(f"{problem}: write {allowed}")
    return int(words)
