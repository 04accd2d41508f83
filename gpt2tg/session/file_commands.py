"""Commands that save and load a session."""

from __future__ import annotations

from pathlib import Path

from gpt2tg.errors import UserError
from gpt2tg.io.outputs import check_file, holds_something
from gpt2tg.options import BUNDLED_MODEL
from gpt2tg.session.files import SavedSession, load_session, save_session
from gpt2tg.session.session import Session
from gpt2tg.session.settings import describe_settings
from gpt2tg.session.text_commands import show_text
from gpt2tg.session.turns import count_turns


def save(session: Session, words: str) -> None:
    """Save the session to a file. A file that it neither saved nor loaded is replaced only if `overwrite` follows."""
    path = _path(words, "/save")
    may_overwrite = words.endswith(" overwrite")
    if may_overwrite:
        path = _path(words.removesuffix(" overwrite"), "/save")
    if holds_something(path) and not may_overwrite and path.resolve() not in session.files:
        raise UserError(f"{path} already exists: choose another name, or replace it with /save {words} overwrite")
    check_file(path, None, session.front.say, may_replace=True)
    tuned = frozenset(session.tuned - session.chosen)
    weights = session.weights_fingerprint()
    save_session(path, SavedSession(session.name, session.options, tuned, session.text.turns, weights))
    session.files.add(path.resolve())
    session.front.say(f"saved {count_turns(session.text.turns)} to {path}")


def load(session: Session, words: str) -> None:
    """Load text and settings of a saved session, and show the text. The model stays."""
    path = _path(words, "/load")
    saved = load_session(path)
    session.restore_settings(saved.options, saved.tuned)
    session.samples = ()
    session.text.change(saved.turns)
    session.files.add(path.resolve())
    session.front.say(f"loaded {count_turns(saved.turns)}, {describe_settings(saved.options)}")
    if saved.model != session.name:
        session.front.say(f"It was saved with the model {saved.model}; this one is {session.name}. /model changes it.")
    elif _has_other_weights(session, saved):
        session.front.say(f"It was saved with other weights of {saved.model}: the same seeds write other texts now.")
    if saved.turns:
        show_text(session, "")


def _has_other_weights(session: Session, saved: SavedSession) -> bool:
    """Whether the model of this name has changed since the session was saved.

    Files of earlier versions have no fingerprint. The bundled model has changed since then; of others we do not know.
    """
    if saved.weights is None:
        return saved.model == BUNDLED_MODEL
    return session.weights_fingerprint() not in (None, saved.weights)


def _path(words: str, command: str) -> Path:
    name = words[1:-1] if len(words) > 1 and words[0] == words[-1] and words[0] in "'\"" else words
    if not name:
        raise UserError(f"the file name is missing: write {command} story.jsonl")
    return Path(name).expanduser()
