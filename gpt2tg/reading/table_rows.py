"""Read texts from tables row by row, in bounded memory: csv, tsv, and jsonl with an object per line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

from gpt2tg.errors import UserError
from gpt2tg.reading.columns import (
    INSTRUCTION_COLUMNS,
    MESSAGE_COLUMNS,
    TRAINING_COLUMNS,
    ColumnChoice,
    Columns,
)
from gpt2tg.reading.conversations import Conversations
from gpt2tg.reading.csv_rows import read_csv_rows
from gpt2tg.reading.file_types import JSON_LINES_SUFFIXES
from gpt2tg.reading.jsonl_rows import read_jsonl_rows
from gpt2tg.reading.plain_text import Piece
from gpt2tg.reading.table_row import Notify, TableError, TableRow


def read_rows(
    file: TextIO,
    suffix: str,
    text_column: str | None,
    notify: Notify,
    preferred: tuple[Columns, ...] = TRAINING_COLUMNS,
    conversations: Conversations | None = None,
) -> Iterator[TableRow]:
    """Yield the rows of a table; rows without text are empty.

    Args:
        file: opened with `newline=""`.
        suffix: of the file name, one of `TABLE_SUFFIXES`.
        text_column: the column of the text. None reads the first entry of `preferred` that the table has, or its only
            column.
        notify: called with the columns that are read, and with what is skipped.
        conversations: how conversations become text; None if their columns are not read.

    Raises:
        TableError: the table is malformed, no column can be chosen, or most rows lack it.
    """
    is_json = suffix in JSON_LINES_SUFFIXES
    if conversations is not None:
        preferred = (*preferred, *(MESSAGE_COLUMNS if is_json else ()), *INSTRUCTION_COLUMNS)
    choice = ColumnChoice(text_column, preferred)
    if is_json:
        return read_jsonl_rows(file, choice, notify, conversations)
    return read_csv_rows(file, suffix, choice, notify, conversations)


def row_pieces(
    file: TextIO, suffix: str, text_column: str | None, notify: Notify, conversations: Conversations | None = None
) -> Iterator[Piece]:
    """Yield the examples of a table for training: prompts and questions carry no loss, completions and answers do.

    A row without text yields one empty piece. Arguments and errors are those of `read_rows`.
    """
    for row in read_rows(file, suffix, text_column, notify, conversations=conversations):
        if row.messages and conversations is not None:
            yield from _conversation_pieces(row, conversations)
            continue
        if row.prompt:
            yield Piece(row.prompt, ends=False, learned=False)
        yield Piece(row.text, ends=True)


def _conversation_pieces(row: TableRow, conversations: Conversations) -> Iterator[Piece]:
    try:
        *others, last = conversations.pieces(row.messages)
    except UserError:  # there is no such template
        raise
    except ValueError as error:
        raise TableError(f"line {row.line}: {error}") from None
    for text, is_learned in others:
        yield Piece(text, ends=False, learned=is_learned)
    yield Piece(last[0], ends=True, learned=last[1])
