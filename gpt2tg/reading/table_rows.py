"""Read texts from tables row by row, in bounded memory: csv, tsv, and jsonl with an object per line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

from gpt2tg.reading.columns import TRAINING_COLUMNS, ColumnChoice, Columns
from gpt2tg.reading.csv_rows import read_csv_rows
from gpt2tg.reading.file_types import JSON_LINES_SUFFIXES
from gpt2tg.reading.jsonl_rows import read_jsonl_rows
from gpt2tg.reading.plain_text import Piece
from gpt2tg.reading.table_row import Notify, TableRow


def read_rows(
    file: TextIO,
    suffix: str,
    text_column: str | None,
    notify: Notify,
    preferred: tuple[Columns, ...] = TRAINING_COLUMNS,
) -> Iterator[TableRow]:
    """Yield the rows of a table; rows without text are empty.

    Args:
        file: opened with `newline=""`.
        suffix: of the file name, one of `TABLE_SUFFIXES`.
        text_column: the column of the text. None reads the first entry of `preferred` that the table has, or its only
            column.
        notify: called with the columns that are read, and with what is skipped.

    Raises:
        TableError: the table is malformed, no column can be chosen, or most rows lack it.
    """
    choice = ColumnChoice(text_column, preferred)
    if suffix in JSON_LINES_SUFFIXES:
        return read_jsonl_rows(file, choice, notify)
    return read_csv_rows(file, suffix, choice, notify)


def row_pieces(file: TextIO, suffix: str, text_column: str | None, notify: Notify) -> Iterator[Piece]:
    """Yield the examples of a table for training: the prompt of a row carries no loss, its text does.

    A row without text yields one empty piece. Arguments and errors are those of `read_rows`.
    """
    for row in read_rows(file, suffix, text_column, notify):
        if row.prompt:
            yield Piece(row.prompt, ends=False, learned=False)
        yield Piece(row.text, ends=True)
