"""Detect the delimiter of a csv file from its first lines: comma, semicolon, tab or vertical bar."""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Callable

# Names for messages.
DELIMITER_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}

# Excel reads and writes such a line above the column names.
DECLARATION = re.compile(r'"?sep=([^\w"\r\n])"?[\r\n]*', re.IGNORECASE)


def declared_delimiter(first_line: str) -> str | None:
    """Return the delimiter that a line `sep=;` declares; None for any other line."""
    found = DECLARATION.fullmatch(first_line)
    return found[1] if found else None


def detect_delimiter(head: list[str], default: str, is_wanted: Callable[[list[str]], bool]) -> str:
    """Return the delimiter that splits the column names and gives all rows as many values.

    Args:
        head: the first lines of the table, the column names first.
        default: returned if no delimiter splits the names; preferred if several fit equally well.
        is_wanted: whether the column to read is among these names; such a delimiter comes first.
    """
    candidates = (default, *(other for other in DELIMITER_NAMES if other != default))
    rows = {delimiter: _parse(head, delimiter) for delimiter in candidates}

    def quality(delimiter: str) -> tuple[bool, bool]:
        names, *rest = rows[delimiter]
        return is_wanted(names), all(fits(row, len(names)) for row in rest)

    splitting = [delimiter for delimiter in candidates if rows[delimiter] and len(rows[delimiter][0]) > 1]
    return max(splitting, key=quality, default=default)


def fits(row: list[str], width: int) -> bool:
    """Whether a row is blank or has a value for each column. Empty values after the last column do not count."""
    return len(row) == width or (len(row) > width and not any(map(str.strip, row[width:]))) or is_blank(row)


def is_blank(row: list[str]) -> bool:
    """Whether a row is a blank line."""
    return len(row) <= 1 and not any(map(str.strip, row))


def _parse(head: list[str], delimiter: str) -> list[list[str]]:
    """Return the rows before the first that cannot be parsed: the last one may be cut off."""
    rows = []
    with contextlib.suppress(csv.Error):
        for row in csv.reader(head, delimiter=delimiter, strict=True):
            rows.append(row)
    return [row for row in rows if row]
