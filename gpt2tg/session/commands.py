"""The commands of a session: their names, their help, and the functions that run them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpt2tg.errors import UserError, nearest
from gpt2tg.options import STRATEGIES
from gpt2tg.session import compare_command, file_commands, inspect_commands, setting_commands, text_commands
from gpt2tg.session.session import Session
from gpt2tg.session.settings import COMPARE_FIELDS, FIELDS, explain_setting, flags_as_settings

# Other names of commands.
ALIASES = {"/exit": "/quit", "/?": "/help"}


class Quit(Exception):
    """The user leaves the session."""


@dataclass(frozen=True)
class Command:
    """A command: its arguments, its help, and the function that runs it."""

    arguments: str
    help: str
    action: Callable[[Session, str], None]
    """Receives the session and what follows the command."""
    options: Sequence[str] = ()
    """Names of the `name=value` options that it takes beside settings."""


def find_command(word: str) -> Command:
    """Return the command with this name, in any case.

    Raises:
        UserError: unknown command.
    """
    word = ALIASES.get(word.lower(), word.lower())
    if word in COMMANDS:
        return COMMANDS[word]
    setting = word.removeprefix("/").partition("=")[0].replace("-", "_")
    if setting in FIELDS:
        raise UserError(f"unknown command {word}: settings are changed with /set {setting}=...")
    near = nearest(word, COMMANDS)
    hint = f"did you mean {near}?" if near else "/help lists all commands"
    raise UserError(f"unknown command {word}: {hint}")


def _help(session: Session, words: str) -> None:
    if not words:
        session.front.say_list({f"{name} {command.arguments}": command.help for name, command in COMMANDS.items()})
        return
    name = words.removeprefix("--").replace("-", "_")
    if name in FIELDS or name in COMPARE_FIELDS:
        session.front.say(explain_setting(name, session.options))
    elif name in STRATEGIES:
        session.front.say(f"{name}: {STRATEGIES[name].summary}")
    else:
        _help_on_command(session, "/" + name.removeprefix("/"))


def _help_on_command(session: Session, name: str) -> None:
    command = find_command(name)
    session.front.say(f"{name} {command.arguments}".rstrip() + f": {command.help}")
    if command.options:
        meanings = {option: flags_as_settings(COMPARE_FIELDS[option].metadata["help"]) for option in command.options}
        session.front.say_list({f"{option}=": meaning for option, meaning in meanings.items()})
        session.front.say("All settings are options too. The prompt follows after the options.")


def _quit(session: Session, _: str) -> None:
    raise Quit


COMMANDS = {
    "/continue": Command("[WORDS]", "continue the text, after your words if you give any", text_commands.continue_text),
    "/say": Command("TEXT", "say something to the model in a conversation, and get its answer", text_commands.say),
    "/retry": Command("", "generate the last turn again with another random draw", text_commands.retry),
    "/again": Command("", "generate the last turn again: same random draw, current settings", text_commands.again),
    "/undo": Command("", "undo the last change to the text", text_commands.undo),
    "/edit": Command("", "edit the whole text in the line editor", text_commands.edit),
    "/text": Command("", "show the whole text", text_commands.show_text),
    "/new": Command("[TEXT]", "clear the text and begin another", text_commands.new),
    "/pick": Command("N", "continue with text N of several", text_commands.pick),
    "/set": Command(
        "NAME=VALUE ...",
        "change settings, such as temperature=0.8 top_p=0.95; alone lists them",
        setting_commands.change_settings,
    ),
    "/show": Command("", "show the model, the settings and the length of the text", setting_commands.show),
    "/decoding": Command("[NAME]", "choose a decoding strategy; alone lists them", setting_commands.choose_strategy),
    "/seed": Command("[N]", "fix the seed; alone takes a new one for each text", setting_commands.set_seed),
    "/stop": Command("[STRING]", "end texts before a string; alone removes it", setting_commands.set_stop),
    "/candidates": Command("[N]", "show the most probable next tokens", inspect_commands.candidates),
    "/why": Command(
        "[all]", "show the probability of each token of the last turn, or of the whole text", inspect_commands.why
    ),
    "/compare": Command(
        "[OPTIONS] [TEXT]",
        "compare strategies on a prompt; /help compare lists the options",
        compare_command.compare,
        tuple(name for name in COMPARE_FIELDS if name != "prompt"),
    ),
    "/model": Command(
        "NAME", "load another model, with its tuned settings if it has any", setting_commands.change_model
    ),
    "/adapter": Command(
        "[DIR ...]",
        "apply LoRA adapters to the model in place of those it has; off applies none",
        setting_commands.change_adapters,
    ),
    "/save": Command("FILE", "save the session to a file", file_commands.save),
    "/load": Command("FILE", "load a saved session", file_commands.load),
    "/help": Command("[NAME]", "list the commands, or explain a command or a setting", _help),
    "/quit": Command("", "leave the session, as does Ctrl-D", _quit),
}
