"""Escapes in texts that are typed."""

from __future__ import annotations

import pytest

from gpt2tg.options.escapes import read_escapes, write_escapes


@pytest.mark.parametrize(
    ("typed", "text"),
    [(r"A\nB", "A\nB"), (r"\t", "\t"), (r"\\n", r"\n"), (r"\x", r"\x"), ("\\", "\\"), (r"C:\\new", r"C:\new")],
)
def test_escapes_are_read(typed: str, text: str) -> None:
    assert read_escapes(typed) == text


@pytest.mark.parametrize("text", ["a\nb", "\\n", "\\\\", "\\", "C:\\new\t\n", "\\x", "\\\n", "end\\"])
def test_written_escapes_are_read_back(text: str) -> None:
    assert read_escapes(write_escapes(text)) == text
