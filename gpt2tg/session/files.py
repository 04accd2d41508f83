"""A session saved as JSON Lines: one line for the session, and one for each turn."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2tg.batch.prompts import setting
from gpt2tg.errors import UserError
from gpt2tg.io.outputs import write_whole
from gpt2tg.options import DecodingOptions
from gpt2tg.reading import parse_json_line, read_lines
from gpt2tg.session.turns import Turn, is_conversation

# Versions of the file format: that of texts, and that of conversations, which older versions of gpt2tg cannot read.
# Files of another version are refused.
VERSION, CONVERSATION_VERSION = 1, 2

# Largest token id in any vocabulary.
MAX_TOKEN_ID = 2**31 - 1


@dataclass(frozen=True)
class SavedSession:
    """Everything that a session file holds."""

    model: str
    options: DecodingOptions
    tuned: frozenset[str]
    """Names of the settings that came with the model and that the user did not choose. In the file: "brought"."""
    turns: tuple[Turn, ...]
    weights: str | None = None
    """Fingerprint of the model's weights; None if it is not known, as in files of earlier versions."""


def save_session(path: Path, session: SavedSession) -> None:
    """Write the session to a file, completely or not at all.

    Raises:
        RunError: the file cannot be written.
    """
    write_whole(path, session_content(session))


def session_content(session: SavedSession) -> str:
    """Return the content of the file of a session."""
    first = {
        "gpt2tg_session": CONVERSATION_VERSION if is_conversation(session.turns) else VERSION,
        "model": session.model,
        "weights": session.weights,
        "turns": len(session.turns),
        "settings": _settings_to_json(session.options),
        "brought": sorted(session.tuned),
    }
    entries = [first, *map(_turn_to_json, session.turns)]
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def load_session(path: Path) -> SavedSession:
    """Read a session file.

    Raises:
        UserError: the file is unreadable, not a session, truncated, or of another version. Names the file and the line.
    """
    return read_session(read_lines(path, None), path)


def read_session(lines: Sequence[str], path: Path) -> SavedSession:
    """Read a session from the lines of its file.

    Args:
        path: the name of the file, for messages.

    Raises:
        UserError: they are no session, truncated, or of another version. Names the file and the line.
    """
    entries = []
    for number, line in enumerate(lines, start=1):
        if line:
            entries.append(parse_json_line(line, f"{path} line {number}", None, "/save writes sessions"))
    if not entries or "gpt2tg_session" not in entries[0]:
        raise UserError(f"{path} is not a saved session: /save writes one")
    first, *rest = entries
    if first["gpt2tg_session"] not in (VERSION, CONVERSATION_VERSION):
        raise UserError(
            f"{path} has session format {first['gpt2tg_session']}, and this version of gpt2tg reads formats {VERSION} "
            f"and {CONVERSATION_VERSION}"
        )
    if first.get("turns") != len(rest):
        raise UserError(f"{path} is truncated: it has {len(rest)} of {first.get('turns')} turns")
    where = f"{path} line 1"
    model, options = _string(first, "model", where), _settings_from_json(first.get("settings"), where)
    tuned = first.get("brought", [])  # missing in files of earlier versions
    if not isinstance(tuned, list) or not set(map(str, tuned)) <= vars(options).keys():
        raise UserError(f'{where}: "brought" must be a list of names of settings')
    weights = None if first.get("weights") is None else _string(first, "weights", where)
    turns = tuple(_turn_from_json(entry, f"{path} line {number}") for number, entry in enumerate(rest, start=2))
    return SavedSession(model, options, frozenset(tuned), turns, weights)


def _settings_to_json(options: DecodingOptions) -> dict[str, Any]:
    """Return all settings, so that the text stays reproducible even if a default changes."""
    return dataclasses.asdict(options)


def _turn_to_json(turn: Turn) -> dict[str, Any]:
    said = {"said": True} if turn.is_said else {}
    return {
        **said,
        "typed": turn.typed,
        "written": turn.written,
        "settings": None if turn.options is None else _settings_to_json(turn.options),
        "choice": turn.choice,
        "finish_reason": turn.finish_reason,
        "ids": turn.ids,
    }


def _turn_from_json(entry: dict[str, Any], where: str) -> Turn:
    choice, reason, settings = entry.get("choice", 0), entry.get("finish_reason"), entry.get("settings")
    if type(choice) is not int or choice < 0:
        raise UserError(f'{where}: "choice" must be a whole number from 0')
    if not isinstance(reason, str | None):
        raise UserError(f'{where}: "finish_reason" must be a string or null')
    ids = entry.get("ids", [])
    if not isinstance(ids, list) or not all(type(token) is int and 0 <= token <= MAX_TOKEN_ID for token in ids):
        raise UserError(f'{where}: "ids" must be a list of token ids')
    options = None if settings is None else _settings_from_json(settings, where)
    is_said = entry.get("said", False)
    if not isinstance(is_said, bool):
        raise UserError(f'{where}: "said" must be true or false')
    typed, written = _string(entry, "typed", where), _string(entry, "written", where)
    return Turn(typed, written, options, choice, reason, tuple(ids), is_said)


def _string(entry: dict[str, Any], name: str, where: str) -> str:
    text = entry.get(name)
    if not isinstance(text, str):
        raise UserError(f'{where}: "{name}" must be a string')
    return text


def _settings_from_json(values: Any, where: str) -> DecodingOptions:
    if not isinstance(values, dict):
        raise UserError(f'{where}: "settings" must be an object')
    given = {name: setting(name, value, where, None) for name, value in values.items() if value is not None}
    try:
        return DecodingOptions(**given)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
