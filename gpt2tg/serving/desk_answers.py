"""Texts and nodes as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpt2tg.desk.desk import Grown, View
from gpt2tg.desk.store import TextEntry
from gpt2tg.desk.tree import Node


def node_json(node: Node, has_tokens: bool) -> dict[str, Any]:
    """Return a node.

    Args:
        has_tokens: whether its tokens are known, though they may not be in the answer.
    """
    return {
        "id": node.id,
        "parent": node.parent,
        "at": node.at,
        "kind": node.kind,
        "text": node.text,
        "name": node.name,
        "created": node.created,
        "settings": node.settings,
        "finish_reason": node.finish_reason,
        "pruned": node.is_pruned,
        "version": node.version,
        "tokens": node.tokens,
        "has_tokens": has_tokens,
    }


def whole_nodes(nodes: Sequence[Node]) -> list[dict[str, Any]]:
    """Return nodes that have their tokens."""
    return [node_json(node, node.tokens is not None) for node in nodes]


def entry_json(entry: TextEntry) -> dict[str, Any]:
    """Return a text of the list."""
    return {
        "id": entry.id,
        "title": entry.title,
        "opening": entry.opening,
        "created": entry.created,
        "changed": entry.changed,
        "words": entry.words,
    }


def text_json(view: View, model: str) -> dict[str, Any]:
    """Return a text with its nodes."""
    return {
        **entry_json(view.text.entry),
        "current": view.text.current,
        "settings": view.text.settings,
        "model": model,
        "nodes": [node_json(node, node.id in view.with_tokens) for node in view.nodes],
    }


def grown_json(grown: Grown) -> dict[str, Any]:
    """Return what has changed in a tree."""
    return {
        "nodes": whole_nodes(grown.nodes),
        "current": grown.current,
        "changed": grown.changed,
        "is_branched": grown.is_branched,
    }
