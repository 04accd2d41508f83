"""Aligned plain-text tables."""

from __future__ import annotations

from gpt2tg.io.tables import aligned


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert aligned([["name", "n"], ["a", "1000"], ["", "2"]], left={0}) == ["name     n", "a     1000", "         2"]


def test_lines_have_no_trailing_spaces() -> None:
    assert aligned([["n", "token"], ["1", "a"]], left={1}) == ["n  token", "1  a"]


def test_wide_characters_take_two_columns() -> None:
    assert aligned([["\u732b", "1"], ["abc", "2"], ["e\u0301", "3"]], left={0}) == [
        "\u732b   1",
        "abc  2",
        "e\u0301    3",
    ]


def test_table_without_rows_has_no_lines() -> None:
    assert aligned([]) == []
