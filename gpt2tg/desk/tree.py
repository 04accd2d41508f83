"""A text as a tree of nodes. An edit, a retry and an alternative token are new nodes: nothing is overwritten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from gpt2tg.errors import UserError

# Who wrote a node: a person, the model, or the model with a person's choice among its tokens.
Kind = Literal["typed", "generated", "chosen"]
KINDS = get_args(Kind)

# A correction that removes at most so many characters changes the node being typed, instead of beginning a branch.
LARGEST_CORRECTION = 20


@dataclass(frozen=True)
class Node:
    """A part of a text. It continues the first `at` characters of its parent's text."""

    id: int
    parent: int | None
    """None for the root."""
    at: int
    kind: Kind
    text: str
    name: str | None = None
    created: float = 0.0
    """Seconds since 1970."""
    settings: Mapping[str, Any] | None = None
    """The decoding settings with the seed, the model's name and the number of the candidate; None if nothing was
    generated."""
    finish_reason: str | None = None
    """As in `Sample`, or `interrupted`. None for typed text, and for a text that is being generated."""
    is_pruned: bool = False
    version: int = 0
    """Counts the changes of a typed node."""
    ids: tuple[int, ...] = field(default=(), repr=False)
    """The tokens that were generated, the one that ended the text included; empty if generation was interrupted."""
    tokens: Sequence[Mapping[str, Any]] | None = field(default=None, repr=False)
    """The tokens of the text with their probabilities; None if they are unknown or were not asked for."""

    @property
    def is_growing(self) -> bool:
        """Whether the model is still writing it."""
        return self.kind == "generated" and self.finish_reason is None


@dataclass(frozen=True)
class Place:
    """A place in a tree: after the first `at` characters of a node."""

    node: int
    at: int


@dataclass(frozen=True)
class Change:
    """What an edit does to a tree."""

    place: Place
    """Where the new node hangs; with `in_place`, the node whose text is replaced."""
    text: str
    in_place: bool


def path_to(nodes: Mapping[int, Node], node: int) -> list[Node]:
    """Return the nodes from the root to a node."""
    found = [nodes[node]]
    while (parent := found[-1].parent) is not None:
        found.append(nodes[parent])
    return found[::-1]


def parts_of(path: Sequence[Node]) -> list[str]:
    """Return what each node of a path shows: its text, cut where the next one hangs."""
    ends = [*(after.at for after in path[1:]), None]
    return [node.text[:end] for node, end in zip(path, ends, strict=True)]


def shown_text(path: Sequence[Node]) -> str:
    """Return the text of the last node of a path, with all that it continues."""
    return "".join(parts_of(path))


def place_of(path: Sequence[Node], position: int) -> Place:
    """Return the place of a position in the shown text. Between two nodes, it is in the earlier one."""
    parts = parts_of(path)
    if position < sum(map(len, parts)):
        for node, part in zip(path, parts, strict=True):
            if position <= len(part):
                return Place(node.id, position)
            position -= len(part)
    return Place(path[-1].id, len(parts[-1]))


def change_of(path: Sequence[Node], text: str, may_replace: bool) -> Change | None:
    """Return how a tree takes up that the shown text of a path has become `text`; None if it was that already.

    Args:
        may_replace: whether the last node may be changed, because nothing hangs at it and nobody else has changed it.
            It then grows with what is typed after it, and takes small corrections.
    """
    before, last = shown_text(path), path[-1]
    if text == before:
        return None
    common, start = common_length(before, text), len(before) - len(last.text)
    removed = len(before) - common - common_length(before[common:][::-1], text[common:][::-1])
    if may_replace and last.kind == "typed" and common >= start and removed <= LARGEST_CORRECTION:
        return Change(Place(last.id, 0), text[start:], in_place=True)
    return Change(place_of(path, common), text[common:], in_place=False)


def common_length(one: str, other: str) -> int:
    """Return the number of characters with which both texts begin."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # of the lengths, the largest with which both begin alike
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def chosen_token(node: Node, token: int, alternative: int) -> tuple[int, Mapping[str, Any], Mapping[str, Any]]:
    """Return where a token begins in the text of its node, the token, and one of its alternatives.

    Raises:
        UserError: there is no such token or alternative, or it is only a part of a character.
    """
    tokens = node.tokens or ()
    if token >= len(tokens):
        raise UserError(f"{token} is no token of node {node.id}, which has {len(tokens)}", "token")
    found = tokens[token].get("alternatives") or ()
    if alternative >= len(found):
        raise UserError(f"{alternative} is no alternative of the token, which has {len(found)}", "alternative")
    chosen = found[alternative]
    if "\N{REPLACEMENT CHARACTER}" in chosen["text"]:
        raise UserError(f"{alternative} is only a part of a character: choose another one", "alternative")
    return sum(len(before["text"]) for before in tokens[:token]), tokens[token], chosen
