"""A session in a file: jsonl, a line for the session and one for each turn."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2tg.batch.prompts import setting
from gpt2tg.errors import UserError
from gpt2tg.io.outputs import write_whole
from gpt2tg.options import DecodingOptions
from gpt2tg.reading import parse_json_line, read_lines
from gpt2tg.session.state import Turn

# The form of the file. A file of a later form is refused, not guessed at.
VERSION = 1

# Of a token, in any vocabulary.
LARGEST_ID = 2**31 - 1


@dataclass(frozen=True)
class SavedSession:
    """All that a session is."""

    model: str
    options: DecodingOptions
    brought: frozenset[str]
    """The settings that the model brought along, and that nobody has chosen."""
    turns: tuple[Turn, ...]


def save(path: Path, session: SavedSession) -> None:
    """Write the whole session, or leave the file as it was.

    Raises:
        RunError: it cannot be written.
    """
    first = {
        "gpt2tg_session": VERSION,
        "model": session.model,
        "turns": len(session.turns),
        "settings": _to_json(session.options),
        "brought": sorted(session.brought),
    }
    entries = [first, *map(_turn_entry, session.turns)]
    write_whole(path, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))


def load(path: Path) -> SavedSession:
    """Read a session.

    Raises:
        UserError: the file cannot be read, is no session, was cut, or is of a later version; names file and line.
    """
    entries = []
    for number, line in enumerate(read_lines(path, None), start=1):
        if line:
            entries.append(parse_json_line(line, f"{path} line {number}", None, "/save writes sessions"))
    if not entries or "gpt2tg_session" not in entries[0]:
        raise UserError(f"{path} is no session: /save writes one")
    first, *rest = entries
    if first["gpt2tg_session"] != VERSION:
        raise UserError(
            f"{path} is a session of form {first['gpt2tg_session']}, and this version of gpt2tg reads form {VERSION}"
        )
    if first.get("turns") != len(rest):
        raise UserError(f"{path} was cut: it should have {first.get('turns')} turns and has {len(rest)}")
    where = f"{path} line 1"
    model, options = _text(first, "model", where), _from_json(first.get("settings"), where)
    brought = first.get("brought", [])  # earlier files lack it
    if not isinstance(brought, list) or not set(map(str, brought)) <= vars(options).keys():
        raise UserError(f'{where} has "brought" that are no settings')
    turns = tuple(_turn(entry, f"{path} line {number}") for number, entry in enumerate(rest, start=2))
    return SavedSession(model, options, frozenset(brought), turns)


def _to_json(options: DecodingOptions) -> dict[str, Any]:
    """All settings, also those at their defaults: these may be others one day, and the text shall stay."""
    return dataclasses.asdict(options)


def _turn_entry(turn: Turn) -> dict[str, Any]:
    return {
        "typed": turn.typed,
        "written": turn.written,
        "settings": None if turn.options is None else _to_json(turn.options),
        "choice": turn.choice,
        "finish_reason": turn.finish_reason,
        "ids": turn.ids,
    }


def _turn(entry: dict[str, Any], where: str) -> Turn:
    choice, reason, settings = entry.get("choice", 0), entry.get("finish_reason"), entry.get("settings")
    if type(choice) is not int or choice < 0 or not isinstance(reason, str | None):
        raise UserError(f"{where} is no turn of a session")
    ids = entry.get("ids", [])
    if not isinstance(ids, list) or not all(type(token) is int and 0 <= token <= LARGEST_ID for token in ids):
        raise UserError(f'{where} has "ids" that are no tokens')
    options = None if settings is None else _from_json(settings, where)
    return Turn(_text(entry, "typed", where), _text(entry, "written", where), options, choice, reason, tuple(ids))


def _text(entry: dict[str, Any], name: str, where: str) -> str:
    if not isinstance(entry.get(name), str):
        raise UserError(f'{where} has no "{name}" that is a text')
    return entry[name]


def _from_json(values: Any, where: str) -> DecodingOptions:
    if not isinstance(values, dict):
        raise UserError(f'{where} has no "settings"')
    given = {name: setting(name, value, where, None) for name, value in values.items() if value is not None}
    try:
        return DecodingOptions(**given)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
