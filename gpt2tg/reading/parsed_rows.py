"""Read rows that are not lines of text: Parquet and Arrow files, and JSON whose objects span several lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from gpt2tg.reading.file_types import JSON_LINES_SUFFIXES, is_binary_table
from gpt2tg.reading.strict_json import parse_json_at
from gpt2tg.reading.table_row import MAX_FIELD_CHARACTERS, TableError

# The suffix of the format that rows are chosen from as soon as they are parsed.
JSON_LINES = JSON_LINES_SUFFIXES[0]

# Rows of a Parquet or Arrow file that are converted at a time.
BATCH_ROWS = 1000

# Characters of JSON that are read at a time.
CHUNK_CHARACTERS = 1 << 20

WHITE_SPACE = re.compile(r"[ \t\r\n]*")

# An error this near to the end of what was read may be gone when more is read, such as half a number or escape.
UNDECIDED_CHARACTERS = 16


class ParsedRows:
    """Rows that need no more parsing, in place of an open file of JSON lines: numbers, from 1, and objects."""

    def __init__(self, rows: Iterator[tuple[int, dict[str, Any]]]) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        return self._rows

    def as_file(self) -> TextIO:
        """Return these rows for a parameter that is otherwise an open file."""
        return cast("TextIO", self)


def binary_rows(file: BinaryIO, path: Path) -> ParsedRows:
    """Return the rows of an open Parquet or Arrow file, read a few at a time.

    Args:
        path: whose suffix tells which of the two it is.

    Raises:
        TableError: when the rows are read: the file is of another kind, or damaged.
    """
    if path.suffix.lower() == ".parquet":
        return ParsedRows(_arrow_errors(_parquet_rows(file), "Parquet"))
    return ParsedRows(_arrow_errors(_arrow_rows(file), "Arrow"))


def json_rows(file: TextIO) -> ParsedRows:
    """Return the objects of an open JSON file with their lines: those of an array, or one after the other.

    Raises:
        TableError: when the rows are read: the file is not JSON, or holds something else than objects.
    """
    return ParsedRows(_json_rows(file))


def in_rows(error: TableError, path: Path) -> TableError:
    """Return an error that counts rows where the file has no lines."""
    return TableError(rows_for_lines(str(error), path))


def rows_for_lines(message: str, path: Path) -> str:
    """Return a message that counts rows where the file has no lines."""
    return re.sub(r"\bline (?=\d)", "row ", message) if is_binary_table(path) else message


def _parquet_rows(file: BinaryIO) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file) as table:
        columns = _text_columns(table.schema_arrow)
        for batch in table.iter_batches(BATCH_ROWS, columns=columns):
            yield from batch.to_pylist()


def _arrow_rows(file: BinaryIO) -> Iterator[dict[str, Any]]:
    import pyarrow

    is_stream = file.read(6) != b"ARROW1"
    file.seek(0)
    if is_stream:
        with pyarrow.ipc.open_stream(file) as stream:
            for batch in stream:
                yield from _batch_rows(batch)
        return
    with pyarrow.ipc.open_file(file) as table:
        for number in range(table.num_record_batches):
            yield from _batch_rows(table.get_batch(number))


def _batch_rows(batch: Any) -> Iterator[dict[str, Any]]:
    batch = batch.select(_text_columns(batch.schema))
    for start in range(0, batch.num_rows, BATCH_ROWS):
        yield from batch.slice(start, BATCH_ROWS).to_pylist()


def _text_columns(schema: Any) -> list[str]:
    """Return the columns that may hold text: no bytes, such as pictures and sounds, and no lists of numbers.

    Those take long to read.
    """
    return [field.name for field in schema if _may_hold_text(field.type)]


def _may_hold_text(kind: Any) -> bool:
    import pyarrow

    shown = str(kind)  # it names the kinds inside: list<element: float>
    return "binary" not in shown and ("string" in shown or not pyarrow.types.is_nested(kind))


def _arrow_errors(rows: Iterator[dict[str, Any]], kind: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows with their numbers; turn the errors of pyarrow into a TableError."""
    import pyarrow

    try:
        yield from enumerate(rows, start=1)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error).splitlines()[0][:200]
        raise TableError(f"is no complete {kind} file ({reason}): get or make it again") from None


def _json_rows(file: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = _JsonReader(file)
    is_array = reader.skip("[")
    while not reader.is_at_end():
        if is_array and reader.skip("]"):
            if not reader.is_at_end():
                raise TableError(f"line {reader.line} has more text after the array: keep one array in a file")
            return
        line, value = reader.line, reader.value()
        if not isinstance(value, dict):
            raise TableError(
                f'line {line} holds {json.dumps(value)[:40]}, not an object: write it like {{"text": "..."}}'
            )
        yield line, value
        if is_array and not reader.skip(",") and not reader.is_next("]"):
            raise TableError(f"line {reader.line}: the array goes on without a comma, or is not closed")
    if is_array:
        raise TableError(f"line {reader.line}: the array is not closed: the file is not complete")


class _JsonReader:
    """Reads one JSON value after the other from a file, holding little more than one of them."""

    def __init__(self, file: TextIO) -> None:
        self.line = 1
        self._file, self._text, self._place = file, "", 0

    def is_at_end(self) -> bool:
        """Skip white space, and return whether nothing else is left."""
        while True:
            end = WHITE_SPACE.match(self._text, self._place).end()  # type: ignore[union-attr]  # it always matches
            self._pass_to(end)
            if end < len(self._text) or not self._read():
                return self._place == len(self._text)

    def is_next(self, sign: str) -> bool:
        """Whether a sign is next, after white space."""
        return not self.is_at_end() and self._text.startswith(sign, self._place)

    def skip(self, sign: str) -> bool:
        """Skip a sign if it is next, after white space, and return whether it was."""
        found = self.is_next(sign)
        self._place += found
        return found

    def value(self) -> Any:
        """Return the next value.

        Raises:
            TableError: it is not JSON, or so long that it could fill the memory.
        """
        self.is_at_end()
        while True:
            try:
                value, end = parse_json_at(self._text, self._place)
            except json.JSONDecodeError as error:
                if self._may_be_cut(error) and self._read():
                    continue
                where = self.line + self._text.count("\n", self._place, error.pos)
                raise TableError(f"line {where} is not valid JSON ({error.msg.removesuffix(' at')}): mend it") from None
            except ValueError as error:
                raise TableError(f"line {self.line} {error}") from None
            self._pass_to(end)
            return value

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether the value may only lack what was not read yet. Very long values are errors."""
        is_at_the_end = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - UNDECIDED_CHARACTERS
        return is_at_the_end and len(self._text) < MAX_FIELD_CHARACTERS

    def _pass_to(self, place: int) -> None:
        self.line += self._text.count("\n", self._place, place)
        self._place = place

    def _read(self) -> bool:
        """Read more, and return whether there was any. As much again as is left, so that long values take few reads."""
        left = self._text[self._place :]
        more = self._file.read(max(CHUNK_CHARACTERS, len(left)))
        self._text, self._place = left + more, 0
        return bool(more)
