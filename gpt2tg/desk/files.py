"""Texts as files: the shown text, a session of the terminal, or the whole tree."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from gpt2tg.desk.desk import Imported, NewNode, View
from gpt2tg.desk.settings import NOT_ON_THE_PAGE
from gpt2tg.desk.tree import KINDS, Kind, Node, parts_of
from gpt2tg.errors import UserError
from gpt2tg.options import DecodingOptions, default_of, only
from gpt2tg.reading.strict_json import parse_json, refuse_lone_surrogates
from gpt2tg.session.files import SavedSession, read_session, session_content
from gpt2tg.session.turns import GrowingText, Turn, is_conversation

# The version of the format of a tree.
VERSION = 1

# Tokens are spelt after so many characters of what is before them.
SPELLED_AFTER = 200


class KnownAuthor(Protocol):
    """The model that may have written a session."""

    def name(self, saved: SavedSession) -> str:
        """Return what the model of a session is called here."""

    def spell(self, saved: SavedSession, before: str, ids: Sequence[int]) -> list[str] | None:
        """Return the text of each token after another text; None if another model has written them."""


def as_session(path: Sequence[Node], settings: Mapping[str, Any], model: str, weights: str | None) -> str:
    """Return the shown text of a path as a session of the terminal, which /load opens.

    A generated node that is shown whole is a turn that its settings generate again. What was typed or chosen, and what
    remains of a generated node that was cut, is what the next turn begins with.

    Args:
        settings: the settings of the session.
        model: the name of the model.
        weights: the fingerprint of its weights, if it is known.
    """
    turns: list[Turn] = []
    typed = ""
    for node, part in zip(path, parts_of(path), strict=True):
        if node.kind != "generated" or node.settings is None or part != node.text:
            typed += part
            continue
        options = DecodingOptions(**as_options(node.settings))
        candidate = int(node.settings.get("candidate", 0))
        turns.append(Turn(typed, part, options, candidate, node.finish_reason or "interrupted", node.ids))
        typed = ""
    if typed or not turns:
        turns.append(Turn(typed))
    options = DecodingOptions(**{"num_sequences": 1, **as_options(settings)})
    return session_content(SavedSession(model, options, frozenset(), tuple(turns), weights))


def as_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the decoding options among the settings of a node or of a text."""
    found = only(DecodingOptions, settings)
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def as_tree(view: View) -> dict[str, Any]:
    """Return a text with all its nodes, for `read_file`."""
    places = {node.id: place for place, node in enumerate(view.nodes)}
    nodes = [
        {
            "parent": None if node.parent is None else places[node.parent],
            **{name: getattr(node, name) for name in ("at", "kind", "text", "name", "settings", "finish_reason")},
            "pruned": node.is_pruned,
            "ids": list(node.ids),
            "tokens": node.tokens,
        }
        for node in view.nodes
    ]
    return {
        "gpt2tg_text": VERSION,
        "title": view.text.entry.title,
        "settings": view.text.settings,
        "current": places[view.text.current],
        "nodes": nodes,
    }


def read_file(content: bytes, name: str, author: KnownAuthor) -> Imported:
    """Read a session of the terminal, a tree, or a plain text.

    Args:
        name: the name of the file, for messages and the title.

    Raises:
        UserError: the file is not UTF-8, or broken.
    """
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 at byte {error.start}: save it as UTF-8") from None
    title, first = Path(name).stem, text.partition("\n")[0]
    if _names(first, "gpt2tg_session"):
        return _from_session(read_session(text.split("\n"), Path(name)), title, author)
    if text.lstrip().startswith("{") and '"gpt2tg_text"' in text[:200]:
        return _from_tree(text, name)
    return Imported(title, [NewNode(None, 0, "typed", text)], 0)


def _names(line: str, key: str) -> bool:
    """Whether a line is a JSON object with this key."""
    try:
        value = parse_json(line)
    except ValueError:
        return False
    return isinstance(value, dict) and key in value


def _from_session(saved: SavedSession, title: str, author: KnownAuthor) -> Imported:
    settings = {
        name: value
        for name, value in vars(saved.options).items()
        if value != default_of(DecodingOptions, name) and name not in NOT_ON_THE_PAGE
    }
    if is_conversation(saved.turns):
        talk = GrowingText()
        talk.change(saved.turns)
        warning = "a conversation is opened as the plain text of its messages"
        return Imported(title, [NewNode(None, 0, "typed", str(talk))], 0, settings, [warning])
    nodes: list[NewNode] = []
    so_far = ""

    def add(kind: Kind, text: str, **values: Any) -> None:
        nonlocal so_far
        parent, at = (len(nodes) - 1, len(nodes[-1].text)) if nodes else (None, 0)
        nodes.append(NewNode(parent, at, kind, text, **values))
        so_far += text

    add("typed", saved.turns[0].typed if saved.turns else "")
    for number, turn in enumerate(saved.turns):
        if number and turn.typed:
            add("typed", turn.typed)
        if turn.options is None:
            if turn.written:
                add("typed", turn.written)
            continue
        known = {**dataclasses.asdict(turn.options), "model": author.name(saved), "candidate": turn.choice}
        tokens = _spelt(author.spell(saved, so_far[-SPELLED_AFTER:], turn.ids), turn)
        reason = turn.finish_reason or "length"
        add("generated", turn.written, settings=known, finish_reason=reason, ids=turn.ids, tokens=tokens)
    return Imported(title, nodes, len(nodes) - 1, settings)


def _spelt(texts: Sequence[str] | None, turn: Turn) -> list[dict[str, Any]] | None:
    """Return the tokens of a turn, without probabilities; None if they do not spell what was written."""
    if not texts or not "".join(texts).startswith(turn.written):
        return None
    tokens, start = [], 0
    for id, text in zip(turn.ids, texts, strict=True):
        if start >= len(turn.written):
            break
        part = turn.written[start : start + len(text)]
        tokens.append({"id": id, "text": part, "logprob": None, "rank": None, "entropy": None, "alternatives": []})
        start += len(text)
    return tokens


def _from_tree(text: str, name: str) -> Imported:
    """Read a tree.

    Raises:
        UserError: names the node that is wrong.
    """
    try:
        value = parse_json(text)
        refuse_lone_surrogates(value)
    except ValueError as error:
        raise UserError(f"{name} {error}") from None
    if value.get("gpt2tg_text") != VERSION:
        raise UserError(f"{name} has format {value.get('gpt2tg_text')}, and this version of gpt2tg reads {VERSION}")
    entries, current, title = value.get("nodes"), value.get("current"), value.get("title", "")
    settings = value.get("settings", {})
    is_whole = isinstance(entries, list) and entries and isinstance(title, str) and isinstance(settings, dict)
    if not (is_whole and type(current) is int and 0 <= current < len(entries)):
        raise UserError(f"{name} is not a text that the page has exported")
    try:
        known = as_options(settings)
        DecodingOptions(**known)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    settings = {option: value for option, value in known.items() if option not in NOT_ON_THE_PAGE}
    nodes: list[NewNode] = []
    for entry in entries:
        try:
            nodes.append(_node(entry, nodes))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            raise UserError(f"{name}: node {len(nodes)} is broken: export the text again") from None
    return Imported(" ".join(title.split()), nodes, current, settings)


def _node(entry: Mapping[str, Any], before: Sequence[NewNode]) -> NewNode:
    """Return a node of a tree.

    Raises:
        ValueError, TypeError, KeyError, AttributeError, OverflowError: it is broken.
    """
    parent: Any = entry["parent"]
    at: Any = entry["at"]
    kind, text, tokens = (entry[name] for name in ("kind", "text", "tokens"))
    name, settings, reason, ids = (entry[name] for name in ("name", "settings", "finish_reason", "ids"))
    _require(kind in KINDS and isinstance(text, str))
    _require(_is_count(at))
    _require(_is_count(parent) and parent < len(before) if before else parent is None)
    _require(at <= (len(before[parent].text) if before else 0))
    _require(isinstance(name, str | None) and isinstance(reason, str | None) and isinstance(settings, dict | None))
    _require(isinstance(ids, list) and all(_is_count(id) and id < 2**31 for id in ids))
    if settings is not None:
        options = DecodingOptions(**as_options(settings))
        model, candidate = settings.get("model", ""), settings.get("candidate", 0)
        _require(isinstance(model, str) and _is_count(candidate))
        settings = {**dataclasses.asdict(options), "model": model, "candidate": candidate}
    if kind == "generated":
        reason = reason or "interrupted"
    if tokens is not None:
        _require(isinstance(tokens, list) and "".join(token["text"] for token in tokens) == text)
        tokens = [_token(token) for token in tokens]
    return NewNode(parent, at, kind, text, name, settings, reason, bool(entry["pruned"]), ids, tokens)


def _token(token: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {name: token[name] for name in ("logprob", "rank", "entropy")}
    _require(_is_count(token["id"]))
    _require(all(value is None or math.isfinite(value) for value in numbers.values()))
    others: list[dict[str, Any]] = [
        {
            "id": int(other["id"]),
            "text": str(other["text"]),
            "probability": float(other["probability"]),
            **({"is_special": True} if other.get("is_special") else {}),
        }
        for other in token["alternatives"]
    ]
    _require(all(0 <= other["probability"] <= 1 for other in others))
    return {"id": token["id"], "text": token["text"], **numbers, "alternatives": others}


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _require(is_right: bool) -> None:
    if not is_right:
        raise ValueError


def tree_content(view: View) -> str:
    """Return the file of a tree."""
    return json.dumps(as_tree(view), ensure_ascii=False) + "\n"
