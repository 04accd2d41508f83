"""The metrics of a comparison as a table, fitted to the width of a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpt2tg.comparison.results import Comparison, Result
from gpt2tg.generation.generator import Sample
from gpt2tg.io.tables import aligned
from gpt2tg.options import STRATEGIES, DecodingOptions


@dataclass(frozen=True)
class Column:
    """A metric as a column of the table."""

    name: str
    heading: str
    number_format: str
    meaning: str


TABLE_COLUMNS = (
    Column("texts", "texts", ".0f", "number of texts generated"),
    Column("tokens_per_second", "tokens/s", ".0f", "tokens generated per second"),
    Column("logprob", "logprob", ".2f", "mean log-probability of a token under the model, in nats"),
    Column("perplexity", "perplexity", ".1f", "perplexity of the model on the texts"),
    Column("distinct_1", "distinct-1", ".2f", "different words of a text, as a share of all its words"),
    Column("distinct_2", "distinct-2", ".2f", "different pairs of words, as a share of all pairs"),
    Column("distinct_3", "distinct-3", ".2f", "different triples of words, as a share of all triples"),
    Column("repetition", "repetition", ".1%", "share of four-word phrases that occurred earlier in the same text"),
    Column("loops", "loops", ".0%", "share of texts that end in a loop"),
    Column("self_bleu", "self-BLEU", ".2f", "similarity of a text to the other texts of its set, from 0 to 1"),
    Column("zipf", "Zipf", ".2f", "Zipf coefficient: how steeply word frequency falls with rank"),
    Column("length", "tokens", ".0f", "mean length in tokens"),
    Column("ended", "ended", ".0%", "share of texts that the model ended itself"),
    Column("copied", "copied", ".1f", "words in the longest run copied from the training text, mean over the texts"),
    Column("copied_most", "copied most", ".0f", "words in the longest run that any text copied"),
    Column("distance", "distance", ".1f", "distance from human text: 0 would be the same in all metrics"),
)


def cell_value(result: Result, column: Column) -> float | None:
    """Return the metric of a result that stands in a column; None if the result does not have it."""
    number: float | None = result.distance if column.name == "distance" else getattr(result.metrics, column.name)
    return number


def cell_text(result: Result, column: Column) -> str:
    """Return the metric as it is printed; a dash if the result does not have it."""
    number = cell_value(result, column)
    return "–" if number is None else format(number, column.number_format)


def used_columns(comparison: Comparison) -> list[Column]:
    """Return the columns in which at least one result has a value."""
    return [c for c in TABLE_COLUMNS if any(cell_value(result, c) is not None for result in comparison.all_results)]


def terminal_table(comparison: Comparison, width: int) -> str:
    """Return the table for a terminal of `width` columns; a wider table is split into parts, one below the other."""
    names = [result.name for result in comparison.all_results]
    first = min(max(map(len, names)), max(12, width // 3))
    parts: list[list[Column]] = [[]]
    for column in used_columns(comparison):
        if parts[-1] and first + sum(_width(comparison, c) + 2 for c in (*parts[-1], column)) > width:
            parts.append([])
        parts[-1].append(column)
    return "\n\n".join(_part(comparison, part, first) for part in parts) + "\n"


def _part(comparison: Comparison, columns: list[Column], first: int) -> str:
    """Return some columns of the table, after the names in a column of `first` characters."""
    rows = [["", *(column.heading for column in columns)]]
    for result in comparison.all_results:
        name = result.name if len(result.name) <= first else result.name[: first - 1] + "…"
        rows.append([name, *(cell_text(result, column) for column in columns)])
    return "\n".join(aligned(rows, left={0}))


def _width(comparison: Comparison, column: Column) -> int:
    return max(len(column.heading), *(len(cell_text(result, column)) for result in comparison.all_results))


def text_writer(write: Callable[[str], None]) -> Callable[[str, DecodingOptions, Sequence[Sample]], None]:
    """Return a function that writes the texts of a strategy under a heading with its name and summary."""

    def show(name: str, options: DecodingOptions, samples: Sequence[Sample]) -> None:
        write(f"=== {name}: {STRATEGIES[options.decoding].summary} ===\n")
        for sample in samples:
            write(f"{sample.text}\n\n")

    return show
