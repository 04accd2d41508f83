"""Parts common to csv and jsonl: the rows they yield, their error, and lines of bounded length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

# Called with each notice for the user: a line of text.
Notify = Callable[[str], None]

# The csv module's own limit, 131,072, refuses long stories. Without any, an unclosed quote would fill the memory.
MAX_FIELD_CHARACTERS = 1 << 27


class TableRow(NamedTuple):
    """A row of a table. A row without text has an empty prompt and an empty text."""

    line: int  # where the row begins, counted from 1
    prompt: str  # empty if the table has no prompts
    text: str  # of a conversation, its last answer
    messages: tuple[dict[str, str], ...] = ()  # of a conversation: each has a role and a content


class TableError(ValueError):
    """A table that cannot be read. The message names the line or the columns, but not the file."""

    def with_path(self, path: Path) -> str:
        """Return the message with the name of the file."""
        return f"{path}, {self}" if str(self).startswith(("line", "row")) else f"{path} {self}"


def bounded_lines(file: TextIO) -> Iterator[str]:
    """Yield the lines of a file, with their ends.

    Raises:
        TableError: a line is so long that it could fill the memory.
    """
    number = 0
    while line := file.readline(MAX_FIELD_CHARACTERS):
        number += 1
        if len(line) == MAX_FIELD_CHARACTERS and not line.endswith(("\n", "\r")):
            raise TableError(
                f"line {number} is longer than {MAX_FIELD_CHARACTERS:,} characters: write one row per line"
            )
        yield line


def blank_row(line: int) -> TableRow:
    """Return a row without text, which is skipped."""
    return TableRow(line, "", "")


def row_or_empty(line: int, prompt: str, text: str) -> TableRow:
    """Return a row with LF line breaks; an empty one if its text is blank."""
    if not text.strip():
        return blank_row(line)
    return TableRow(line, prompt.replace("\r\n", "\n"), text.replace("\r\n", "\n"))


def notify_empty(count: int, notify: Notify, what: str = "text") -> None:
    """Report how many rows without text, or another part, were skipped, if any."""
    if count:
        notify(f"skipped {count:,} row{'' if count == 1 else 's'} without {what}")
