"""Tables of inspected tokens."""

from __future__ import annotations

from gpt2tg.inspection.tables import candidate_table, percent, quoted, token_table
from gpt2tg.inspection.tokens import Candidate, InspectedToken, NextToken


def test_token_table_is_aligned() -> None:
    tokens = [
        InspectedToken(1, " owl", -0.7, 0.5, 1, 2.345),
        InspectedToken(2, "\u732b\n", -11.5, 0.00001, 50257, 10.0),
    ]
    assert token_table(tokens).splitlines() == [
        "probability   rank  entropy  token",
        '    50.00 %      1     2.35  " owl"',
        '   < 0.01 %  50257    10.00  "\u732b\\n"',
    ]


def test_candidate_table_ends_with_the_rest() -> None:
    found = NextToken(1.5, (Candidate(3, " a", 0.75, 1), Candidate(4, "b", 0.125, 2)))
    assert candidate_table(found).splitlines() == [
        " rank  probability  token",
        '    1      75.00 %  " a"',
        '    2      12.50 %  "b"',
        "all other tokens 12.50 %, entropy 1.50 nats",
    ]


def test_small_probability_is_never_shown_as_zero() -> None:
    assert (percent(0.00001), percent(0.0)) == ("< 0.01 %", "0.00 %")


def test_control_characters_are_escaped() -> None:
    assert quoted("a\x1b[1m\x9b") == '"a\\u001b[1m\\u009b"'
