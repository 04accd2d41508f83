"""What separates the values of a csv, found from its first lines: programs write commas, semicolons, tabs or bars."""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Callable

DELIMITERS = (",", ";", "\t", "|")

# How a delimiter is called in a message.
SPOKEN = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}

# Excel writes and reads such a line above the column names.
DECLARED = re.compile(r'"?sep=([^\w"\r\n])"?[\r\n]*', re.IGNORECASE)


def declared_delimiter(first_line: str) -> str | None:
    """The delimiter that a line `sep=;` declares; None for any other line."""
    found = DECLARED.fullmatch(first_line)
    return found[1] if found else None


def find_delimiter(head: list[str], usual: str, is_wanted: Callable[[list[str]], bool]) -> str:
    """The delimiter that splits the column names, and the rows into as many values.

    Args:
        head: the first lines of the table, the column names first.
        usual: taken where none splits the names, and before others that fit as well.
        is_wanted: whether the column to read is among these names.
    """
    order = (usual, *(other for other in DELIMITERS if other != usual))
    rows = {delimiter: _rows(head, delimiter) for delimiter in order}

    def quality(delimiter: str) -> tuple[bool, bool]:
        names, *rest = rows[delimiter]
        return is_wanted(names), all(fits(row, len(names)) for row in rest)

    splitting = [delimiter for delimiter in order if rows[delimiter] and len(rows[delimiter][0]) > 1]
    return max(splitting, key=quality, default=usual)


def fits(row: list[str], width: int) -> bool:
    """Whether a row has a value for each column. Empty values behind the last column are no values."""
    return len(row) == width or (len(row) > width and not any(map(str.strip, row[width:]))) or is_blank(row)


def is_blank(row: list[str]) -> bool:
    """Whether a row is a line without anything."""
    return len(row) <= 1 and not any(map(str.strip, row))


def _rows(head: list[str], delimiter: str) -> list[list[str]]:
    """The rows up to the first that cannot be read, which may be cut."""
    rows = []
    with contextlib.suppress(csv.Error):
        for row in csv.reader(head, delimiter=delimiter, strict=True):
            rows.append(row)
    return [row for row in rows if row]
