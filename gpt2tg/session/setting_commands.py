"""Commands that change or show the settings and the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gpt2tg.checkpoint.checkpoint import Checkpoint, resolve_checkpoint, with_adapters
from gpt2tg.checkpoint.tuned_settings import as_flags, beside_chosen
from gpt2tg.errors import UserError
from gpt2tg.options import STRATEGIES, DecodingOptions, default_of, why_unused
from gpt2tg.options.escapes import read_escapes
from gpt2tg.session.session import Session
from gpt2tg.session.settings import (
    FIELDS,
    describe_settings,
    flags_as_settings,
    parse_settings,
    unused_settings,
    with_settings,
)
from gpt2tg.session.turns import count_turns
from gpt2tg.session.words import shell_words


def change_settings(session: Session, words: str) -> None:
    """Change settings by `name=value` words; without words, list all settings."""
    if words:
        _choose(session, parse_settings(words))
    else:
        session.front.say_list({name: flags_as_settings(field.metadata["help"]) for name, field in FIELDS.items()})


def _choose(session: Session, given: dict[str, Any]) -> None:
    """Change settings, and print which are not used, and all that are in force now."""
    session.choose(given)
    for name in unused_settings(session.options, given):
        session.front.say(f"{name} is not used: {flags_as_settings(why_unused(name, session.options))}")
    session.front.say(describe_settings(session.options))


def show(session: Session, _: str) -> None:
    """Print the model, the settings and the length of the text."""
    session.front.say(session.description())
    if session.text.turns:
        tokens = len(session.generator.encode(session.prompt_of(session.text.turns)))
        context_length = session.generator.model.shape.n_positions
        turns = count_turns(session.text.turns)
        session.front.say(f"text: {turns}, {tokens} tokens; context length {context_length}")


def choose_strategy(session: Session, name: str) -> None:
    """Choose a decoding strategy; without a name, list them with a star before the current one."""
    if name:
        _choose(session, {"decoding": name})
        return
    now = session.options.decoding
    session.front.say_list({f"{'*' if key == now else ' '} {key}": found.summary for key, found in STRATEGIES.items()})


def set_seed(session: Session, words: str) -> None:
    """Fix the seed; without a number, take a new one for each text."""
    changed = with_settings(session.options, parse_settings(f"seed={words or 'off'}"))
    session.options = replace(changed, replay=None)
    session.front.say(describe_settings(session.options))


def set_stop(session: Session, words: str) -> None:
    """End texts before a string, or before the first of several in quotes; without words, end nowhere."""
    if words.lower() in ("", "off", "none"):
        _choose(session, {"stop": ()})
        return
    strings = shell_words(words) if words[:1] in ("'", '"') else [words]
    _choose(session, {"stop": tuple(map(read_escapes, strings))})


def change_model(session: Session, name: str) -> None:
    """Load another model, with the settings that `--tune --apply` saved in its directory."""
    if not name:
        session.front.say(session.description())
        return
    if session.load is None:
        raise UserError("this session cannot load another model")
    _load(session, resolve_checkpoint(name, "model"))


def change_adapters(session: Session, words: str) -> None:
    """Apply other adapters to the model, instead of those that it has; `off` applies none."""
    now = session.generator.checkpoint
    if not words or now is None or session.load is None:
        session.front.say(session.description())
        return
    names = [] if words.lower() in ("off", "none") else shell_words(words)
    _load(session, with_adapters(now.without_adapters, names))


def _load(session: Session, checkpoint: Checkpoint) -> None:
    assert session.load is not None
    tuned = beside_chosen(checkpoint.tuned_settings, session.options, session.chosen)
    reset = {setting: default_of(DecodingOptions, setting) for setting in session.tuned - session.chosen}
    options = with_settings(session.options, {**reset, **tuned})
    session.generator, session.name = session.load(checkpoint), checkpoint.name
    session.options, session.tuned = options, set(tuned)
    if words := as_flags(tuned):
        session.front.say(flags_as_settings(f"settings of the checkpoint, found by --tune: {words}"))
    session.front.say(session.description())
