"""When a text ends."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from gpt2tg.decoding.stopping import Deadline, Endings, StopStrings, cut_at_stop, held_back

LETTERS = {1: "a", 2: "b", 3: "ab", 4: "c", 5: "\N{PILE OF POO}", 6: "the en", 7: "d."}


def tail(index: int, ids: Sequence[int], count: int) -> str:
    return "".join(LETTERS.get(i, "") for i in ids[-count:])


@pytest.mark.parametrize(
    ("strings", "ids", "found"),
    [
        (["ab"], [4, 1, 2], True),  # spread over two tokens
        (["ab"], [3], True),
        (["b"], [4, 3], True),  # inside a token, with text before it
        (["bc"], [3, 4], True),  # begins in one token and ends in the next
        (["abc"], [1, 2, 2], False),
        (["the end"], [1, 6, 7], True),
        (["\N{PILE OF POO}c"], [1, 5, 4], True),
        (["xyz", "ab"], [1, 2], True),
        ([], [1, 2], False),
    ],
)
def test_stop_strings_are_found_across_token_borders(strings: list[str], ids: list[int], found: bool) -> None:
    stop = StopStrings(strings, tail)
    assert [stop.end_in(0, ids[: n + 1]) for n in range(len(ids))] == [False] * (len(ids) - 1) + [found]


@pytest.mark.parametrize(
    ("text", "strings", "without", "with_it"),
    [
        ("one. two. three", [". "], "one", "one. "),
        ("one. two", ["two", "."], "one", "one."),
        ("abc", ["bc", "b"], "a", "abc"),  # of two at the same place, the longer one is kept
        ("abc", ["x"], "abc", "abc"),
        ("abc", [], "abc", "abc"),
        ("stop", ["stop"], "", "stop"),
    ],
)
def test_text_is_cut_at_the_first_stop_string(text: str, strings: list[str], without: str, with_it: str) -> None:
    assert cut_at_stop(text, strings, keep=False) == without
    assert cut_at_stop(text, strings, keep=True) == with_it


@pytest.mark.parametrize(
    ("text", "strings", "held"),
    [
        ("one th", ["the end"], 2),
        ("one the", ["the end"], 3),
        ("one", ["the"], 0),
        ("aaa", ["aab"], 2),
        ("x\n", ["\n\n", "\nTHE"], 1),
        ("a", [], 0),
    ],
)
def test_possible_beginning_of_a_stop_string_is_held_back(text: str, strings: list[str], held: int) -> None:
    assert held_back(text, strings) == held


def test_finish_reasons() -> None:
    late = False
    endings = Endings({9}, StopStrings(["ab"], tail), [3, 5], lambda: late)
    assert endings(0, [1]) is None
    assert endings(0, [9]) == "eos"
    assert endings(0, [1, 2]) == "stop"
    assert endings(0, [4, 4, 4]) == "length"
    assert endings(1, [4, 4, 4]) is None
    late = True
    assert endings(1, [4, 4, 4]) == "time"
    assert endings(1, [4, 4, 4, 4, 4]) == "length"


def test_deadline_counts_from_its_creation() -> None:
    now = [100.0]
    deadline = Deadline(2.5, lambda: now[0])
    assert not deadline()
    now[0] = 102.4
    assert not deadline()
    now[0] = 102.5
    assert deadline()
