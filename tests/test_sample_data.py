"""The bundled training text keeps what its readers are told about it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

LINES = (Path(__file__).parent.parent / "sample_data.txt").read_text(encoding="utf-8").splitlines()


def words_of(line: str) -> list[str]:
    return line.replace("—", " ").split()


def test_there_are_at_least_a_thousand_fables_and_no_two_are_equal() -> None:
    assert len(LINES) >= 1000
    assert len(set(LINES)) == len(LINES)


@pytest.mark.parametrize("number", range(0, len(LINES), 100))
def test_each_is_short_and_ends_in_a_moral_after_a_dash(number: int) -> None:
    for line in LINES[number : number + 100]:
        assert 12 <= len(words_of(line)) <= 40, line
        story, dash, moral = line.partition(" — ")
        assert dash, line
        assert story, line
        assert re.fullmatch(r"[a-z].*[a-z][.]", moral), line


def test_no_two_share_eight_words_in_a_row() -> None:
    seen: dict[tuple[str, ...], str] = {}
    for line in LINES:
        words = re.findall(r"[a-z']+", line.lower())
        runs = {tuple(words[i : i + 8]) for i in range(len(words) - 7)}
        for run in runs:
            assert run not in seen, f"{line!r} shares {' '.join(run)!r} with {seen[run]!r}"
        seen.update(dict.fromkeys(runs, line))
