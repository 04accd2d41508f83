"""What a person does with texts: begin, edit, continue, choose, prune. Each method is one transaction."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gpt2tg.desk.store import Store, StoredText
from gpt2tg.desk.tree import Kind, Node, Place, change_of, chosen_token, path_to, place_of, shown_text
from gpt2tg.errors import UserError
from gpt2tg.options.desk import LONGEST_TITLE

# Limits of one text, so that an answer stays readable for a browser.
MOST_CHARACTERS = 1_000_000
MOST_NODES = 10_000


@dataclass(frozen=True)
class View:
    """A text with all its nodes. Those on the way to the current one have their tokens."""

    text: StoredText
    nodes: Sequence[Node]
    with_tokens: frozenset[int]
    """The nodes whose tokens are known."""


@dataclass(frozen=True)
class Grown:
    """How a tree has changed."""

    nodes: Sequence[Node]
    """The nodes that are new or have changed, with their tokens."""
    current: int
    changed: float
    """When the text was changed last."""
    is_branched: bool = False
    """Whether the node had been changed by somebody else meanwhile, so that the edit has become a branch."""


@dataclass(frozen=True)
class NewNode:
    """A node to add. `parent` is its place in the list of nodes; None for the first one, the root."""

    parent: int | None
    at: int
    kind: Kind
    text: str
    name: str | None = None
    settings: Mapping[str, Any] | None = None
    finish_reason: str | None = None
    is_pruned: bool = False
    ids: Sequence[int] = ()
    tokens: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Imported:
    """A text that was read from a file."""

    title: str
    nodes: Sequence[NewNode]
    current: int
    """The place of the shown node in the list."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()


class Desk:
    """The texts of a database."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def new_text(self, title: str, content: str, settings: Mapping[str, Any] | None = None) -> int:
        """Begin a text, and return its number.

        Raises:
            UserError: it is too long.
        """
        check_length(content, "text")
        with self.store.transaction():
            text = self.store.add_text(title, settings or {})
            root = self.store.add_node(text, None, "typed", content)
            self._show(text, root)
        return text

    def add_imported(self, imported: Imported) -> int:
        """Add a text that was read from a file, and return its number.

        Raises:
            UserError: it is too long.
        """
        if len(imported.nodes) > MOST_NODES:
            raise UserError(f"the text has {len(imported.nodes):,} parts: at most {MOST_NODES:,} are kept in one text")
        numbers: list[int] = []
        with self.store.transaction():
            text = self.store.add_text(imported.title[:LONGEST_TITLE], imported.settings)
            for node in imported.nodes:
                check_length(node.text, "text")
                place = None if node.parent is None else Place(numbers[node.parent], node.at)
                number = self.store.add_node(text, place, node.kind, node.text, node.settings)
                columns = {"name": node.name, "finish_reason": node.finish_reason, "is_pruned": node.is_pruned}
                self.store.change_node(number, **columns, ids=node.ids)
                if node.tokens is not None:
                    self.store.add_tokens(number, node.tokens)
                numbers.append(number)
            self._show(text, numbers[imported.current])
        return text

    def view(self, text: int, with_all_tokens: bool = False) -> View:
        """Return a text.

        Raises:
            MissingError: there is none.
        """
        stored, nodes = self.store.text(text), self.store.nodes(text)
        for node in list(nodes.values()) if with_all_tokens else path_to(nodes, stored.current):
            nodes[node.id] = replace(node, tokens=self.store.tokens(node.id))
        return View(stored, list(nodes.values()), frozenset(self.store.nodes_with_tokens(text)))

    def node(self, text: int, node: int) -> Node:
        """Return a node with its tokens.

        Raises:
            MissingError: there is none.
        """
        return replace(self.store.path_in(text, node)[-1], tokens=self.store.tokens(node))

    def edit(self, text: int, node: int, content: str, version: int | None = None) -> Grown:
        """Take up that the shown text of a node was changed.

        Args:
            version: the version of the node that was changed. If it is an older one, the node stays as it is.

        Raises:
            MissingError: there is no such node.
            UserError: the text is too long.
        """
        check_length(content, "text")
        with self.store.transaction():
            path = self.store.path_in(text, node)
            is_old = version is not None and version != path[-1].version
            change = change_of(path, content, not is_old and not self.store.children(node))
            if change is None:
                self._show(text, node)
                return self._grown(text)
            if change.in_place:
                self.store.change_node(node, text=change.text, version=path[-1].version + 1)
                found = node
            else:
                self._check_room(text, 1)
                found = self.store.add_node(text, change.place, "typed", change.text)
            self._show(text, found)
            return self._grown(text, found, is_branched=is_old)

    def choose(self, text: int, node: int, token: int, alternative: int) -> Grown:
        """Put an alternative in the place of a token, as a branch. One that was chosen before is shown again.

        Raises:
            MissingError: there is no such node.
            UserError: there is no such token or alternative.
        """
        with self.store.transaction():
            start, before, chosen = chosen_token(self.node(text, node), token, alternative)
            special = chosen.get("is_special", False)
            content = "" if special else str(chosen["text"])
            reason = "eos" if special else None
            for child in self.store.children(node):
                same = (child.kind, child.at, child.text, child.finish_reason) == ("chosen", start, content, reason)
                if same and not child.is_pruned:
                    self._show(text, child.id)
                    return self._grown(text, child.id)
            self._check_room(text, 1)
            found = self.store.add_node(text, Place(node, start), "chosen", content)
            self.store.change_node(found, finish_reason=reason, ids=[chosen["id"]])
            self.store.add_tokens(found, [{**before, **_as_token(chosen, before, content)}])
            self._show(text, found)
            return self._grown(text, found)

    def prompt(self, text: int, node: int) -> str:
        """Return the shown text of a node.

        Raises:
            MissingError: there is no such node.
        """
        return shown_text(self.store.path_in(text, node))

    def begin(self, text: int, node: int, settings: Sequence[Mapping[str, Any]]) -> list[int]:
        """Add empty nodes to generate, one for each of the settings. A single one becomes the current one.

        Raises:
            MissingError: there is no such node.
            UserError: the text has too many nodes.
        """
        with self.store.transaction():
            path = self.store.path_in(text, node)
            self._check_room(text, len(settings))
            place = place_of(path, len(shown_text(path)))
            found = [self.store.add_node(text, place, "generated", "", one) for one in settings]
            if len(found) == 1:
                self._show(text, found[0])
        return found

    def grow(self, pieces: Mapping[int, tuple[str, Sequence[Mapping[str, Any]]]]) -> None:
        """Add pieces with their tokens to nodes that are being generated.

        Args:
            pieces: by node.
        """
        with self.store.transaction():
            for node, (piece, tokens) in pieces.items():
                self.store.grow(node, piece)
                if tokens:
                    self.store.add_tokens(node, tokens)

    def finish(self, text: int, ends: Mapping[int, tuple[str, Sequence[int]]]) -> None:
        """Note why nodes have ended, and the tokens that were generated for them.

        Args:
            ends: by node.
        """
        with self.store.transaction():
            for node, (reason, ids) in ends.items():
                self.store.change_node(node, finish_reason=reason, ids=ids)
            if self.store.exists(text):
                self.store.note_change(text)

    def change_text(self, text: int, **changes: Any) -> None:
        """Change the title, the current node or the settings of a text.

        Raises:
            MissingError: there is no such text or node.
        """
        with self.store.transaction():
            self.store.text(text)
            current = changes.pop("current", None)
            if current is not None:
                self.store.path_in(text, current)
                self._show(text, current)
            if changes:
                self.store.change_text(text, **changes, changed=time.time())

    def change_node(self, text: int, node: int, **changes: Any) -> Grown:
        """Name a node, prune it with all that continues it, or bring it back.

        Raises:
            MissingError: there is no such node.
            UserError: the root is to be pruned.
        """
        with self.store.transaction():
            path = self.store.path_in(text, node)
            if changes.get("is_pruned") and len(path) == 1:
                raise UserError("is for branches, and this node begins the text: delete the text", "pruned")
            if changes:
                self.store.change_node(node, **changes)
            current = self.store.path(self.store.text(text).current)
            if changes.get("is_pruned") and node in (shown.id for shown in current):
                first = next(place for place, shown in enumerate(current) if shown.is_pruned)
                self._show(text, current[first - 1].id)
            else:
                self.store.change_text(text, changed=time.time())
            return self._grown(text, node)

    def delete(self, text: int) -> None:
        """Delete a text. It can be restored for some time.

        Raises:
            MissingError: there is none.
        """
        with self.store.transaction():
            self.store.text(text)
            self.store.change_text(text, deleted=time.time())

    def restore(self, text: int) -> None:
        """Bring back a text that was deleted.

        Raises:
            MissingError: there is none.
        """
        with self.store.transaction():
            self.store.change_text(text, deleted=None)
            self.store.text(text)

    def _show(self, text: int, node: int) -> None:
        self.store.change_text(text, current=node)
        self.store.note_change(text)

    def _grown(self, text: int, *nodes: int, is_branched: bool = False) -> Grown:
        found = [self.node(text, node) for node in nodes]
        stored = self.store.text(text)
        return Grown(found, stored.current, stored.entry.changed, is_branched)

    def _check_room(self, text: int, count: int) -> None:
        if self.store.node_count(text) + count > MOST_NODES:
            raise UserError(f"the text has {MOST_NODES:,} parts already: export a branch and begin a new text with it")


def check_length(content: str, name: str) -> None:
    """Refuse a text that is too long.

    Raises:
        UserError: names the field.
    """
    if len(content) > MOST_CHARACTERS:
        raise UserError(f"has {len(content):,} characters: at most {MOST_CHARACTERS:,} are kept in one text", name)


def _as_token(chosen: Mapping[str, Any], before: Mapping[str, Any], content: str) -> dict[str, Any]:
    """Return an alternative as the token of a node, in the form of the one that it replaces."""
    probability = chosen["probability"]
    others = before.get("alternatives") or ()
    rank = 1 + sum(other["probability"] > probability for other in others)
    logprob = round(math.log(probability), 5) if probability > 0 else None
    return {"id": chosen["id"], "text": content, "logprob": logprob, "rank": rank}
