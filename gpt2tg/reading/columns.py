"""Which columns of a table hold the texts, and whether its first line has names of columns at all."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import NamedTuple

Say = Callable[[str], None]
Columns = tuple[str, ...]

# The columns to read where none is named: the first of these that are there. Of two the last is learned.
FOR_LEARNING = (("prompt", "completion"), ("text",))

# What people call the only column of a table. Any other first line may be the first text of a file without names.
NAMES_IN_USE = """
    text texts content contents body document doc story stories poem poems poetry lyrics song verse verses quote quotes
    quotation sentence sentences line lines paragraph passage chapter article post comment review tweet message email
    headline title titles name names word words joke jokes recipe description summary abstract question answer prompt
    completion response output input transcript caption note notes value data essay letter dialogue example examples
    texte phrase texto frase testo frasi tekst satz sätze geschichte gedicht
"""
USUAL_NAMES = frozenset(NAMES_IN_USE.split())

# In characters: the texts below a name are so many times as long.
TEXT_TO_NAME = 3

# What a text has and the name of a column has not.
MARKS_OF_TEXT = re.compile(r"""[\s,.!?;:"“”„«»…。、！？<>{}()\[\]]""")


class TableError(ValueError):
    """A table that cannot be read; the message names the line or the columns."""

    def about(self, path: Path) -> str:
        """The message, with the file it is about."""
        return f"{path}, {self}" if str(self).startswith("line") else f"{path} {self}"


class Choice(NamedTuple):
    """How the columns to read are chosen."""

    text_column: str | None
    wanted: tuple[Columns, ...]

    def named(self, there: list[str]) -> Columns:
        """The columns that are asked for by name, as the table writes them; none where they are not there."""
        for columns in self.wanted if self.text_column is None else ((self.text_column,),):
            found = tuple(name for column in columns for name in _alike(column, there)[:1])
            if len(found) == len(columns):
                return found
        return ()

    def only(self, there: list[str]) -> Columns:
        """The only column, where none is asked for."""
        names = [name for name in there if _plain(name)]
        return tuple(names) if self.text_column is None and len(names) == 1 else ()

    def refusal(self, there: list[str], hint: str = "") -> TableError:
        """The error where no column can be chosen."""
        if self.text_column is not None:
            return TableError(f"has no column {self.text_column}: it has {listed(there)}")
        return TableError(f"has the columns {listed(there)}: say with --text_column which of them holds the text{hint}")


def _alike(column: str, there: list[str]) -> list[str]:
    """The columns that go by a name: written just so, or but for capitals and blanks.

    Raises:
        TableError: several do.
    """
    if column in there:
        return [column]
    found = [name for name in there if _plain(name) == _plain(column)]
    if len(found) > 1:
        raise TableError(f"has the columns {listed(found)}: say with --text_column which of them holds the text")
    return found


def _plain(name: str) -> str:
    return name.strip("\ufeff\u200b \t\r\n\xa0").casefold()


def listed(columns: Iterable[str]) -> str:
    """Names of columns, fit for a message."""
    names = ["".join(sign for sign in name if sign.isprintable())[:40] for name in columns if _plain(name)]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "none"


def announced(columns: Columns) -> str:
    """What is told of the columns that are read."""
    names = " and ".join(f'"{listed([name])}"' for name in columns)
    return f"reading the column{'' if len(columns) == 1 else 's'} {names}"


def column_names(row: list[str], line: int) -> list[str]:
    """The names of the columns. Those without a name at the end are none.

    Raises:
        TableError: no names, or two columns of one name.
    """
    names = [name.strip("\ufeff \t\r\n\xa0") for name in row]
    while names and not _plain(names[-1]):
        names.pop()
    if not names:
        raise TableError(f"line {line} has no names of columns: write them above the first row")
    for name in names:
        if _plain(name) and names.count(name) > 1:
            raise TableError(f"line {line}: two columns are named {listed([name])}: rename or remove one")
    return names


def only_column(choice: Choice, names: list[str], line: int, texts: list[str]) -> Columns:
    """The only column, where its name is one, and not the first text of a file without a line of names.

    Raises:
        TableError: there are several columns, or the first line seems to be a text.
    """
    columns = choice.only(names)
    if not columns:
        raise choice.refusal(names, f"; if line {line} is no line of names, write one above it")
    (name,) = columns
    if _plain(name) in USUAL_NAMES:
        return columns
    if MARKS_OF_TEXT.search(name) or (texts and median(map(len, texts)) < TEXT_TO_NAME * len(name)):
        as_flag = shlex.quote(name) if len(name) <= 40 else "NAME"
        raise TableError(
            f'line {line}: is "{listed([name])}" the name of the column, or the first text? '
            f"Write a line above it that says text, or name the file .txt, or say --text_column {as_flag}"
        )
    return columns
