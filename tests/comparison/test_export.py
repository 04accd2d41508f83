"""The table of a comparison: on a terminal, and as JSON, CSV and Markdown."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from gpt2tg.comparison.export import as_json, csv_text, markdown
from gpt2tg.comparison.results import compare_strategies
from gpt2tg.comparison.strategies import parse_strategies
from gpt2tg.comparison.table import TABLE_COLUMNS, terminal_table
from gpt2tg.generation.generator import Generator, load
from gpt2tg.options import DecodingOptions

SHORT = DecodingOptions(seed=3, max_new_tokens=10, num_sequences=2)


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Generator:
    return load(str(model_dir))


def test_table_fits_the_terminal_width(generator: Generator) -> None:
    found = compare_strategies(
        generator, ["The fox"], parse_strategies(SHORT, "top_p:temperature=0.9:min_p=0.1,beam", print)
    )
    for width in (40, 80, 200):
        table = terminal_table(found, width)
        assert max(map(len, table.splitlines())) <= width
        assert all(column.heading in table for column in TABLE_COLUMNS[:13])
        assert "copied" not in table  # no training text was given
        assert "distance" not in table
    assert terminal_table(found, 200).count("\n\n") == 0


def test_csv_markdown_and_json_agree(generator: Generator) -> None:
    found = compare_strategies(generator, ["The fox"], parse_strategies(SHORT, "greedy,top_p", print))
    rows = list(csv.DictReader(csv_text(found).splitlines()))
    entries = as_json(found)["strategies"]
    assert [row["strategy"] for row in rows] == [entry["name"] for entry in entries] == ["greedy", "top_p"]
    assert [float(row["zipf"]) for row in rows] == [entry["figures"]["zipf"] for entry in entries]
    assert entries[1]["settings"]["top_p"] == 0.9
    assert [text["replay"] for text in entries[1]["texts"]] == ["3/0/0", "3/0/1"]
    assert f"| greedy | 1 | {found.results[0].metrics.tokens_per_second:.0f} |" in markdown(found)
