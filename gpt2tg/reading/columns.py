"""Choose the columns of a table that hold the texts, and check that its first line has column names at all."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from statistics import median
from typing import NamedTuple

from gpt2tg.reading.table_row import TableError

Columns = tuple[str, ...]

# The columns to read if none is named: the first entry that the table has. Of two columns, the first is the prompt.
TRAINING_COLUMNS: tuple[Columns, ...] = (("prompt", "completion"), ("text",))

# Columns of conversations, which training reads if the table has none of those above. Lists need JSON.
INSTRUCTION_COLUMNS: tuple[Columns, ...] = (("instruction", "input", "output"), ("instruction", "output"))
MESSAGE_COLUMNS: tuple[Columns, ...] = (("messages",), ("conversations",), ("conversation",))

# Usual names for the only column of a table. Any other first line may be the first text of a file without names.
_NAMES = """
    text texts content contents body document doc story stories poem poems poetry lyrics song verse verses quote quotes
    quotation sentence sentences line lines paragraph passage chapter article post comment review tweet message email
    headline title titles name names word words joke jokes recipe description summary abstract question answer prompt
    completion response output input transcript caption note notes value data essay letter dialogue example examples
    texte phrase texto frase testo frasi tekst satz sätze geschichte gedicht
"""
COMMON_NAMES = frozenset(_NAMES.split())

# A first line is a column name if the texts below it are at least this many times as long.
TEXT_TO_NAME = 3

# Characters that occur in texts, but not in column names.
TEXT_CHARACTERS = re.compile(r"""[\s,.!?;:"“”„«»…。、！？<>{}()\[\]]""")

HOW_TO_CHOOSE = "choose the one that holds the text with --text_column"


class ColumnChoice(NamedTuple):
    """How to choose the columns to read: by the name that the user gave, else the first of `preferred` that exists."""

    text_column: str | None
    preferred: tuple[Columns, ...]

    def by_name(self, available: list[str]) -> Columns:
        """Return the wanted columns, spelled as in the table; an empty tuple if the table has none of them.

        Raises:
            TableError: several columns match the same name.
        """
        for columns in self.preferred if self.text_column is None else ((self.text_column,),):
            matches = tuple(name for column in columns for name in _match(column, available)[:1])
            if len(matches) == len(columns):
                return matches
        return ()

    def only_one(self, available: list[str]) -> Columns:
        """Return the only column of the table, if the user named none; else an empty tuple."""
        names = [name for name in available if _normalized(name)]
        return tuple(names) if self.text_column is None and len(names) == 1 else ()

    def error(self, available: list[str], hint: str = "") -> TableError:
        """Return the error for a table in which no column can be chosen."""
        if self.text_column is not None:
            return TableError(f"has no column {self.text_column}: it has {join_names(available)}")
        return TableError(f"has the columns {join_names(available)}: {HOW_TO_CHOOSE}{hint}")


def _match(column: str, available: list[str]) -> list[str]:
    """Return the column with exactly this name, or else those that differ only in case and surrounding spaces.

    Raises:
        TableError: several columns differ only in these.
    """
    if column in available:
        return [column]
    matches = [name for name in available if _normalized(name) == _normalized(column)]
    if len(matches) > 1:
        raise TableError(f"has the columns {join_names(matches)}: {HOW_TO_CHOOSE}")
    return matches


def _normalized(name: str) -> str:
    return name.strip("\ufeff\u200b \t\r\n\xa0").casefold()


def join_names(columns: Iterable[str]) -> str:
    """Return column names for a message: printable, at most 40 characters each, at most eight of them."""
    names = ["".join(sign for sign in name if sign.isprintable())[:40] for name in columns if _normalized(name)]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "none"


def reading_notice(columns: Columns, template: str | None = None) -> str:
    """Return the notice that names the columns being read.

    Args:
        template: the name of the chat template, if they hold conversations.
    """
    *others, last = (f'"{join_names([name])}"' for name in columns)
    names = f"{', '.join(others)} and {last}" if others else last
    as_conversations = "" if template is None else f" as conversations, with {template}"
    return f"reading the column{'' if len(columns) == 1 else 's'} {names}{as_conversations}"


def are_instructions(columns: Columns) -> bool:
    """Whether these are the columns of instructions with their outputs."""
    return tuple(map(_normalized, columns)) in INSTRUCTION_COLUMNS


def are_messages(columns: Columns) -> bool:
    """Whether this is a column that holds conversations by its name."""
    return tuple(map(_normalized, columns)) in MESSAGE_COLUMNS


def parse_header(row: list[str], line: int) -> list[str]:
    """Return the column names in the first row, without the empty ones at its end.

    Raises:
        TableError: there are no names, or two columns have the same one.
    """
    names = [name.strip("\ufeff \t\r\n\xa0") for name in row]
    while names and not _normalized(names[-1]):
        names.pop()
    if not names:
        raise TableError(f"line {line} has no column names: write them above the first row")
    for name in names:
        if _normalized(name) and names.count(name) > 1:
            raise TableError(f"line {line}: two columns are named {join_names([name])}: rename or remove one")
    return names


def only_column(choice: ColumnChoice, names: list[str], line: int, texts: list[str]) -> Columns:
    """Return the only column, after checking that the first line is its name and not the first text.

    Args:
        line: number of the line with the column names.
        texts: the lines below it, to compare their length with that of the name.

    Raises:
        TableError: there are several columns, or the first line seems to be a text.
    """
    columns = choice.only_one(names)
    if not columns:
        raise choice.error(names, f". If line {line} does not hold column names, write some above it")
    (name,) = columns
    if _normalized(name) in COMMON_NAMES:
        return columns
    if TEXT_CHARACTERS.search(name) or (texts and median(map(len, texts)) < TEXT_TO_NAME * len(name)):
        as_flag = shlex.quote(name) if len(name) <= 40 else "NAME"
        raise TableError(
            f'line {line}: is "{join_names([name])}" the column name or the first text? If it is a text, write a line '
            f'"text" above it, or name the file .txt; if it is the name, add --text_column {as_flag}'
        )
    return columns
