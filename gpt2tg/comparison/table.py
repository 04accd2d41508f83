"""The figures of a comparison as a table: for a terminal, as Markdown, as CSV, and everything as JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2tg.batch.writers import record
from gpt2tg.comparison.compare import Comparison, Result
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import Sample
from gpt2tg.io.outputs import check_file, write_whole
from gpt2tg.options import STRATEGIES, DecodingOptions

FORMATS = (".json", ".csv", ".md")


@dataclass(frozen=True)
class Column:
    """A figure, as it is shown."""

    name: str
    heading: str
    shown_as: str
    meaning: str


COLUMNS = (
    Column("texts", "texts", ".0f", "texts written"),
    Column("tokens_per_second", "tokens/s", ".0f", "tokens written per second"),
    Column("logprob", "logprob", ".2f", "mean log-probability of a token, in nats"),
    Column("perplexity", "perplexity", ".1f", "perplexity of the model on the texts"),
    Column("distinct_1", "distinct-1", ".2f", "share of the words of a text that are different from each other"),
    Column("distinct_2", "distinct-2", ".2f", "the same for pairs of words"),
    Column("distinct_3", "distinct-3", ".2f", "the same for three words in a row"),
    Column("repetition", "repetition", ".1%", "share of four words in a row that stood in the text before"),
    Column("loops", "loops", ".0%", "share of texts that end in a loop"),
    Column("self_bleu", "self-BLEU", ".2f", "likeness of a text to the others of its set"),
    Column("zipf", "Zipf", ".2f", "Zipf coefficient of the word frequencies"),
    Column("length", "tokens", ".0f", "mean length in tokens"),
    Column("ended", "ended", ".0%", "share of texts that the model ended itself"),
    Column("copied", "copied", ".1f", "mean longest run of words that stands in the training text"),
    Column("copied_most", "copied most", ".0f", "the longest of these runs"),
    Column("distance", "distance", ".1f", "distance from human text"),
)


def value(result: Result, column: Column) -> float | None:
    """A figure of a result; None where it has none."""
    return result.distance if column.name == "distance" else getattr(result.figures, column.name)


def shown(result: Result, column: Column) -> str:
    """A figure as a person reads it."""
    number = value(result, column)
    return "–" if number is None else format(number, column.shown_as)


def columns_of(comparison: Comparison) -> list[Column]:
    """The columns in which anything stands."""
    return [c for c in COLUMNS if any(value(result, c) is not None for result in comparison.all_results)]


def terminal_table(comparison: Comparison, width: int) -> str:
    """The table in so many columns of a terminal; where it is wider, in parts one below the other."""
    names = [result.name for result in comparison.all_results]
    first = min(max(map(len, names)), max(12, width // 3))
    parts: list[list[Column]] = [[]]
    for column in columns_of(comparison):
        if parts[-1] and first + sum(_width(comparison, c) + 2 for c in (*parts[-1], column)) > width:
            parts.append([])
        parts[-1].append(column)
    return "\n\n".join(_part(comparison, part, first) for part in parts) + "\n"


def _part(comparison: Comparison, columns: list[Column], first: int) -> str:
    widths = [_width(comparison, column) for column in columns]
    lines = [" " * first + "".join(f"  {c.heading:>{width}}" for c, width in zip(columns, widths, strict=True))]
    for result in comparison.all_results:
        name = result.name if len(result.name) <= first else result.name[: first - 1] + "…"
        cells = (f"  {shown(result, c):>{width}}" for c, width in zip(columns, widths, strict=True))
        lines.append(f"{name:<{first}}" + "".join(cells))
    return "\n".join(line.rstrip() for line in lines)


def _width(comparison: Comparison, column: Column) -> int:
    return max(len(column.heading), *(len(shown(result, column)) for result in comparison.all_results))


def markdown(comparison: Comparison) -> str:
    """The table and what its columns mean."""
    columns = columns_of(comparison)
    lines = [
        "| | " + " | ".join(column.heading for column in columns) + " |",
        "| --- |" + " ---: |" * len(columns),
        *(
            f"| {result.name} | " + " | ".join(shown(result, column) for column in columns) + " |"
            for result in comparison.all_results
        ),
        "",
        *(f"- {column.heading}: {column.meaning}" for column in columns),
    ]
    return "\n".join(lines) + "\n"


def csv_text(comparison: Comparison) -> str:
    """A line for each strategy, all figures in full."""
    target = io.StringIO()
    rows = csv.writer(target, lineterminator="\n")
    rows.writerow(["strategy", *(column.name for column in COLUMNS)])
    for result in comparison.all_results:
        rows.writerow([result.name, *(value(result, column) for column in COLUMNS)])
    return target.getvalue()


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All that is known: settings, figures, and a record for each text."""
    return {
        "prompts": list(comparison.prompts),
        "seed": comparison.seed,
        "strategies": [_result(result) for result in comparison.results],
        "human": None if comparison.human is None else _result(comparison.human),
    }


def _result(result: Result) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": result.name, "figures": dataclasses.asdict(result.figures)}
    if result.distance is not None:
        entry |= {"distance": result.distance, "differences": result.differences}
    if result.options is None:
        texts = [{"prompt": sample.prompt, "completion": sample.completion} for sample in result.samples]
    else:
        texts = [record(sample, len(result.samples), result.options) for sample in result.samples]
        entry["settings"] = texts[0]["settings"]
    for entry_of_text, text in zip(texts, result.texts, strict=True):
        entry_of_text.pop("settings", None)
        if text.copied is not None:
            entry_of_text["copied"] = text.copied
    return {**entry, "texts": texts}


def text_writer(write: Callable[[str], None]) -> Callable[[str, DecodingOptions, Sequence[Sample]], None]:
    """Writes the texts of a strategy under a heading that says what it does."""

    def show(name: str, options: DecodingOptions, samples: Sequence[Sample]) -> None:
        write(f"=== {name}: {STRATEGIES[options.decoding].summary} ===\n")
        for sample in samples:
            write(f"{sample.text}\n\n")

    return show


def file_to_write(
    name: str | None, endings: tuple[str, ...], option: str, overwrite: bool, say: Callable[[str], None]
) -> Path | None:
    """The file that an option names, refused where it cannot be written, before anything is computed.

    Args:
        say: takes a line on what the person should know.

    Raises:
        UserError: another ending, no such directory, or it is there and not to be replaced.
    """
    if name is None:
        return None
    path = Path(name)
    if path.suffix not in endings:
        raise UserError(f"{path} is of an unknown kind: give a name that ends in {' or '.join(endings)}", option)
    check_file(path, option, say, may_replace=overwrite)
    return path


def write_table(comparison: Comparison, path: Path) -> None:
    """Write the comparison in the form that the ending of the file asks for.

    Raises:
        RunError: it cannot be written.
    """
    if path.suffix == ".json":
        text = json.dumps(as_json(comparison), ensure_ascii=False, indent=1) + "\n"
    else:
        text = csv_text(comparison) if path.suffix == ".csv" else markdown(comparison)
    write_whole(path, text)
