"""The tree of a text: what a path shows, and what becomes of an edit."""

from __future__ import annotations

import random

import pytest

from gpt2tg.desk.tree import Change, Node, Place, change_of, common_length, parts_of, place_of, shown_text

# Two generated parts, the first of which was cut after "The old king", and a typed one.
PATH = [
    Node(1, None, 0, "typed", "The old "),
    Node(2, 1, 8, "generated", "king sat down"),
    Node(3, 2, 4, "typed", " rose."),
]


def test_path_shows_each_text_up_to_the_next_node() -> None:
    assert parts_of(PATH) == ["The old ", "king", " rose."]
    assert shown_text(PATH) == "The old king rose."
    assert shown_text(PATH[:2]) == "The old king sat down"


@pytest.mark.parametrize(
    ("position", "place"),
    [(0, (1, 0)), (3, (1, 3)), (8, (1, 8)), (9, (2, 1)), (12, (2, 4)), (13, (3, 1)), (18, (3, 6))],
)
def test_position_between_two_nodes_belongs_to_the_earlier_one(position: int, place: tuple[int, int]) -> None:
    assert place_of(PATH, position) == Place(*place)


@pytest.mark.parametrize(
    ("text", "place", "new", "in_place"),
    [
        ("The old king rose. Then", (3, 0), " rose. Then", True),  # typed on
        ("The old king roses.", (3, 0), " roses.", True),  # a small correction of what was typed
        ("The old king", (3, 0), "", True),
        ("The old kind rose.", (2, 3), "d rose.", False),  # what the model wrote is kept
        ("A king", (1, 0), "A king", False),
        ("", (1, 0), "", False),
    ],
)
def test_edit_extends_what_is_typed_or_makes_a_branch(
    text: str, place: tuple[int, int], new: str, in_place: bool
) -> None:
    assert change_of(PATH, text, may_replace=True) == Change(Place(*place), new, in_place)
    if in_place:  # where something hangs at the node, or it was changed by another page
        change = change_of(PATH, text, may_replace=False)
        assert change is not None
        assert not change.in_place


def test_large_deletion_makes_a_branch() -> None:
    path = [Node(1, None, 0, "typed", "A sentence that took a while to write. And one more.")]
    change = change_of(path, "And one more.", may_replace=True)
    assert change == Change(Place(1, 1), "nd one more.", in_place=False)
    assert change_of(path, path[0].text, may_replace=True) is None


def test_any_edit_gives_the_edited_text() -> None:
    """Applied to the tree, the change shows exactly what was typed."""
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choice("The old king. é😀\u0301") for _ in range(draw.randrange(25)))
        edited = draw.choice([text, shown_text(PATH)[: draw.randrange(19)] + text])
        change = change_of(PATH, edited, may_replace=draw.random() < 0.5)
        if change is None:
            assert edited == shown_text(PATH)
        elif change.in_place:
            assert shown_text([*PATH[:-1], Node(3, 2, 4, "typed", change.text)]) == edited
        else:
            upper = PATH[: next(n for n, node in enumerate(PATH) if node.id == change.place.node) + 1]
            new = Node(4, change.place.node, change.place.at, "typed", change.text)
            assert shown_text([*upper, new]) == edited


def test_common_length() -> None:
    for one, other, length in (("", "a", 0), ("abc", "abd", 2), ("abc", "abcd", 3), ("abc", "abc", 3), ("x", "y", 0)):
        assert common_length(one, other) == length
