"""What begins with a slash."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2tg.checkpoint.checkpoint import resolve_checkpoint
from gpt2tg.checkpoint.tuned_settings import as_flags, beside_chosen
from gpt2tg.errors import UserError
from gpt2tg.io.outputs import check_file, holds_something
from gpt2tg.options import STRATEGIES, DecodingOptions, default_of, unused_options, why_unused
from gpt2tg.options.escapes import read_escapes
from gpt2tg.session import compare, files, inspect
from gpt2tg.session.settings import (
    COMPARING_FIELDS,
    FIELDS,
    changed,
    explained,
    given_in,
    in_force,
    merged,
    number,
    split,
    unused,
    without_dashes,
)
from gpt2tg.session.state import Turn

if TYPE_CHECKING:
    from gpt2tg.session.session import Session

# So much of the end of a text is shown when it changes without being written.
TAIL = 60


class Quit(Exception):
    """The person leaves."""


@dataclass(frozen=True)
class Command:
    """A command, what may follow it, and what it does."""

    arguments: str
    help: str
    action: Callable[[Session, str], None]
    options: Sequence[str] = ()
    """The `name=value` words that it takes, other than settings."""


def find_command(word: str) -> Command:
    """The command of that name.

    Raises:
        UserError: there is none.
    """
    word = word.lower()
    word = {"/exit": "/quit", "/?": "/help"}.get(word, word)
    if word in COMMANDS:
        return COMMANDS[word]
    setting = word.removeprefix("/").partition("=")[0].replace("-", "_")
    if setting in FIELDS:
        raise UserError(f"no command {word}; settings are changed with /set {setting}=...")
    raise UserError(f"no command {word}; {did_you_mean(word, COMMANDS, '/help lists them')}")


def _help(session: Session, words: str) -> None:
    if not words:
        return _list(session, {f"{name} {command.arguments}": command.help for name, command in COMMANDS.items()})
    name = words.removeprefix("--").replace("-", "_")
    if name in FIELDS or name in COMPARING_FIELDS:
        session.front.say(explained(name, session.options))
    elif name in STRATEGIES:
        session.front.say(f"{name}: {STRATEGIES[name].summary}")
    else:
        name = "/" + name.removeprefix("/")
        command = find_command(name)
        session.front.say(f"{name} {command.arguments}".rstrip() + f": {command.help}")
        meanings = {option: COMPARING_FIELDS[option].metadata["help"] for option in command.options}
        if meanings:
            _list(session, {f"{option}=": without_dashes(meaning) for option, meaning in meanings.items()})
            session.front.say("All settings may stand there too. What follows them is the prompt.")


def _list(session: Session, entries: dict[str, str]) -> None:
    """Names with what they mean, side by side where there is room."""
    width = max(session.front.width(), 30)
    indent = max(map(len, entries)) + 4
    if indent > width // 2:
        indent = 6
    for name, meaning in entries.items():
        lines = textwrap.wrap(meaning, width - indent - 1)
        first = f"  {name}"
        if len(first) >= indent:
            session.front.say(first)
        else:
            session.front.say(first.ljust(indent) + lines.pop(0))
        for line in lines:
            session.front.say(" " * indent + line)


def _set(session: Session, words: str) -> None:
    if not words:
        return _list(session, {name: without_dashes(field.metadata["help"]) for name, field in FIELDS.items()})
    given = given_in(words)
    session.choose(given)
    for name in unused(session.options, given):
        session.front.say(f"{name} is not used: {why_unused(name, session.options).replace('--', '')}")
    session.front.say(in_force(session.options))


def _set_one(session: Session, name: str, value: object) -> None:
    session.choose({name: value})
    if unused_options([name] if value else [], session.options):
        session.front.say(f"{name} is not used: {why_unused(name, session.options).replace('--', '')}")
    session.front.say(in_force(session.options))


def _show(session: Session, _: str) -> None:
    session.front.say(session.description())
    model, text = session.generator, str(session.text)
    if session.text.turns:
        session.front.say(
            f"text: {_turns(session.text.turns)}, {len(model.encode(text))} tokens; "
            f"the model sees {model.model.shape.n_positions}"
        )


def _decoding(session: Session, name: str) -> None:
    if name:
        return _set_one(session, "decoding", name)
    now = session.options.decoding
    _list(session, {f"{'*' if key == now else ' '} {key}": found.summary for key, found in STRATEGIES.items()})


def _seed(session: Session, words: str) -> None:
    changed_options, _ = changed(session.options, f"seed={words or 'off'}")
    session.options = replace(changed_options, replay=None)
    session.front.say(in_force(session.options))


def _stop(session: Session, words: str) -> None:
    strings = map(read_escapes, split(words) if words[:1] in ("'", '"') else [words])
    _set_one(session, "stop", () if words.lower() in ("", "off", "none") else tuple(strings))


def _continue(session: Session, words: str) -> None:
    text, words = str(session.text), session.text_of(words)
    joins = not words or not text or text[-1].isspace() or words[0] in ",.;:!?)"
    session.go_on(words if joins else f" {words}")


def _retry(session: Session, _: str) -> None:
    session.rewrite(session.options_for_retry())


def _again(session: Session, _: str) -> None:
    session.rewrite(session.options_for_again())


def _pick(session: Session, words: str) -> None:
    if not session.beside:
        raise UserError("there is one text only: /set num_sequences=3 writes several")
    choice = number(words, len(session.beside), "a text") - 1
    sample, last = session.beside[choice], session.text.turns[-1]
    turn = replace(last, written=sample.completion, choice=choice, finish_reason=sample.finish_reason, ids=sample.ids)
    session.text.change((*session.text.turns[:-1], turn))
    _tell_end(session)


def _undo(session: Session, _: str) -> None:
    if not session.text.undo():
        raise UserError("there is nothing to take back")
    session.beside = ()
    _tell_end(session)


def _edit(session: Session, _: str) -> None:
    if session.front.edit is None:
        raise UserError("/edit needs a terminal in which a line can be edited")
    before = str(session.text)
    try:
        after = session.front.edit(before)
    except (KeyboardInterrupt, EOFError):
        after = before
    if after == before:
        session.front.say("The text is as it was.")
        return
    session.beside = ()
    session.text.change((Turn(after),) if after else ())
    _tell_end(session)


def _new(session: Session, words: str) -> None:
    if words:
        return session.begin(session.text_of(words))
    session.text.change(())
    session.beside = ()
    session.front.say("The text is put away. Type a beginning, or let the model find one with /continue.")


def _text(session: Session, _: str) -> None:
    front = session.front
    if not session.text.turns:
        raise UserError("there is no text yet: type its beginning")
    with front.text() as write:
        for turn in session.text.turns:
            write(front.style.typed(front.style.shown(turn.typed)) + front.style.shown(turn.written))
    front.write("\n")


def _tell_end(session: Session) -> None:
    text = str(session.text)
    end = " ".join(text[-TAIL:].split())
    if not text:
        session.front.say("The text is empty.")
    else:
        session.front.say(f"The text ends: {'...' if len(text) > TAIL else ''}{session.front.style.shown(end)}")


def _model(session: Session, name: str) -> None:
    if not name:
        session.front.say(session.description())
        return
    if session.load is None:
        raise UserError("another model cannot be loaded here")
    checkpoint = resolve_checkpoint(name, "model")
    own = beside_chosen(checkpoint.tuned_settings, session.options, session.chosen)
    gone = {setting: default_of(DecodingOptions, setting) for setting in session.brought - session.chosen}
    options = merged(session.options, {**gone, **own})
    session.generator, session.name = session.load(checkpoint), name
    session.options, session.brought = options, set(own)
    if words := as_flags(own):
        session.front.say(without_dashes(f"settings of the checkpoint, found by --tune: {words}"))
    session.front.say(session.description())


def _save(session: Session, words: str) -> None:
    path = _path(words, "/save")
    may_overwrite = words.endswith(" overwrite")
    if may_overwrite:
        path = _path(words.removesuffix(" overwrite"), "/save")
    if holds_something(path) and not may_overwrite and path.resolve() not in session.files:
        raise UserError(f"{path} exists already: choose another, or write /save {words} overwrite")
    check_file(path, None, session.front.say, may_replace=True)
    brought = frozenset(session.brought - session.chosen)
    files.save(path, files.SavedSession(session.name, session.options, brought, session.text.turns))
    session.files.add(path.resolve())
    session.front.say(f"saved {_turns(session.text.turns)} to {path}")


def _load(session: Session, words: str) -> None:
    path = _path(words, "/load")
    saved = files.load(path)
    session.take_up(saved.options, saved.brought)
    session.beside = ()
    session.text.change(saved.turns)
    session.files.add(path.resolve())
    session.front.say(f"loaded {_turns(saved.turns)}, {in_force(saved.options)}")
    if saved.model != session.name:
        session.front.say(f"It was written by {saved.model}; the model here is {session.name}. /model changes it.")
    if saved.turns:
        _text(session, "")


def _turns(turns: tuple[Turn, ...]) -> str:
    return f"{len(turns)} turn{'' if len(turns) == 1 else 's'}"


def _path(words: str, command: str) -> Path:
    name = words[1:-1] if len(words) > 1 and words[0] == words[-1] and words[0] in "'\"" else words
    if not name:
        raise UserError(f"a file name is missing: write {command} story.jsonl")
    return Path(name).expanduser()


def _quit(session: Session, _: str) -> None:
    raise Quit


COMMANDS = {
    "/continue": Command("[WORDS]", "more of the same text, after your words if any", _continue),
    "/retry": Command("", "the last turn anew, another draw", _retry),
    "/again": Command("", "the last turn anew, same seed, settings as they are now", _again),
    "/undo": Command("", "take back the last change to the text", _undo),
    "/edit": Command("", "change the text so far in the line editor", _edit),
    "/text": Command("", "the whole text so far", _text),
    "/new": Command("[TEXT]", "put the text away and begin another", _new),
    "/pick": Command("N", "go on with another of several texts", _pick),
    "/set": Command("NAME=VALUE ...", "change settings, as temperature=0.8 top_p=0.95; alone lists them", _set),
    "/show": Command("", "the model, the settings and the length of the text", _show),
    "/decoding": Command("[NAME]", "choose a strategy; alone lists them", _decoding),
    "/seed": Command("[N]", "the same texts every time; alone undoes it", _seed),
    "/stop": Command("[STRING]", "end texts before a string; alone undoes it", _stop),
    "/candidates": Command("[N]", "what may come next, with its probabilities", inspect.candidates),
    "/why": Command("[all]", "how probable each token of the last turn was, or of all", inspect.why),
    "/compare": Command(
        "[OPTIONS] [TEXT]",
        "a prompt through the strategies; /help compare lists what may be set",
        compare.compare,
        tuple(name for name in COMPARING_FIELDS if name != "prompt"),
    ),
    "/model": Command("NAME", "go on with another model, and the settings that --tune found for it", _model),
    "/save": Command("FILE", "write the session to a file", _save),
    "/load": Command("FILE", "read a saved session", _load),
    "/help": Command("[NAME]", "this, or what a command or a setting does", _help),
    "/quit": Command("", "leave; so does Ctrl-D", _quit),
}
