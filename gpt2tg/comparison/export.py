"""A comparison as a file: JSON with everything, CSV or Markdown with the table."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt2tg.batch.rendering import record
from gpt2tg.comparison.results import Comparison, Result
from gpt2tg.comparison.table import TABLE_COLUMNS, cell_text, cell_value, used_columns
from gpt2tg.errors import UserError
from gpt2tg.io.outputs import check_file, write_whole

FORMATS = (".json", ".csv", ".md")


def file_to_write(
    name: str | None, endings: tuple[str, ...], option: str, overwrite: bool, say: Callable[[str], None]
) -> Path | None:
    """Return the output file that an option names, or None; refuse a file that cannot be written.

    Args:
        endings: the file name extensions that are allowed.
        option: the option that names the file, for error messages.
        say: receives notices about the file.

    Raises:
        UserError: another extension, a missing directory, or a file that exists and may not be overwritten.
    """
    if name is None:
        return None
    path = Path(name)
    if path.suffix not in endings:
        raise UserError(f"{path} has an unknown format: give a file name that ends in {' or '.join(endings)}", option)
    check_file(path, option, say, may_replace=overwrite)
    return path


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write the comparison in the format of the file name's extension.

    Raises:
        RunError: the file cannot be written.
    """
    if path.suffix == ".json":
        text = json.dumps(as_json(comparison), ensure_ascii=False, indent=1) + "\n"
    else:
        text = csv_text(comparison) if path.suffix == ".csv" else markdown(comparison)
    write_whole(path, text)


def markdown(comparison: Comparison) -> str:
    """Return the table, and a list with the meaning of its columns."""
    columns = used_columns(comparison)
    lines = [
        "| | " + " | ".join(column.heading for column in columns) + " |",
        "| --- |" + " ---: |" * len(columns),
        *(
            f"| {result.name} | " + " | ".join(cell_text(result, column) for column in columns) + " |"
            for result in comparison.all_results
        ),
        "",
        *(f"- {column.heading}: {column.meaning}" for column in columns),
    ]
    return "\n".join(lines) + "\n"


def csv_text(comparison: Comparison) -> str:
    """Return a header and one line for each strategy, with all columns in full precision."""
    target = io.StringIO()
    rows = csv.writer(target, lineterminator="\n")
    rows.writerow(["strategy", *(column.name for column in TABLE_COLUMNS)])
    for result in comparison.all_results:
        rows.writerow([result.name, *(cell_value(result, column) for column in TABLE_COLUMNS)])
    return target.getvalue()


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return the whole comparison for JSON: settings, metrics (under the key "figures"), and a record of each text."""
    return {
        "prompts": list(comparison.prompts),
        "seed": comparison.seed,
        "strategies": [_result_as_json(result) for result in comparison.results],
        "human": None if comparison.human is None else _result_as_json(comparison.human),
    }


def _result_as_json(result: Result) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": result.name, "figures": dataclasses.asdict(result.metrics)}
    if result.distance is not None:
        entry |= {"distance": result.distance, "differences": result.differences}
    texts: list[dict[str, Any]]
    if result.options is None:
        texts = [{"prompt": sample.prompt, "completion": sample.completion} for sample in result.samples]
    else:
        texts = [record(sample, len(result.samples), result.options) for sample in result.samples]
        entry["settings"] = texts[0]["settings"]
    for text_entry, text in zip(texts, result.texts, strict=True):
        text_entry.pop("settings", None)
        if text.copied is not None:
            text_entry["copied"] = text.copied
    return {**entry, "texts": texts}
