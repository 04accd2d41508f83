"""Read the texts in a user's files: plain text, csv, tsv and jsonl. Anything else is refused with the reason.

Which function to call:

- one text file: `read_text`, or `read_lines` for its lines; standard input: `read_stdin`
- the examples of a file of any of these formats, as training sees them: `read_examples`
- the rows of a csv, tsv or jsonl file, with their line numbers: `read_table`
- the object on one line of JSON: `parse_json_line`
- the format of a file, by its name: `is_table`, `is_json_lines`; to refuse --text_column for plain text:
  `check_text_column`

All of these hold a whole file in memory. Training reads files of any size piece by piece with `plain_text.pieces` and
`table_rows.row_pieces`. Every error is a `UserError` that names the file, the place in it, and what to do.
"""

from gpt2tg.reading.file_types import check_text_column, is_json_lines, is_table
from gpt2tg.reading.whole_files import (
    PROMPT_COLUMNS,
    examples_of,
    parse_json_line,
    read_examples,
    read_lines,
    read_stdin,
    read_table,
    read_text,
)

__all__ = [
    "PROMPT_COLUMNS",
    "check_text_column",
    "examples_of",
    "is_json_lines",
    "is_table",
    "parse_json_line",
    "read_examples",
    "read_lines",
    "read_stdin",
    "read_table",
    "read_text",
]
