"""Options on reading text files that several commands share."""

from __future__ import annotations

from typing import Literal

from gpt2tg.options.fields import option

# What one example of plain text is.
Examples = Literal["line", "paragraph", "file"]

# The field `text_column` of each option class that has one.
TEXT_COLUMN = option(
    None,
    "the column of a table (.csv, .jsonl, .parquet, a dataset ...) that holds the text",
    group="data",
    metavar="NAME",
    shown_default="prompt and completion if both exist, with loss on the completion alone; else text, or the only "
    "column",
)
