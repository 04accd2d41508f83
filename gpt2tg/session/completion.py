"""Tab completion: commands, names of settings, and their values."""

from __future__ import annotations

from gpt2tg.options import BUNDLED_MODEL, HUB_MODELS, STRATEGIES
from gpt2tg.session.commands import COMMANDS
from gpt2tg.session.settings import COMPARE_FIELDS, FIELDS

# What can be typed -> its meaning.
Completions = dict[str, str]


def completions(line: str) -> tuple[str, Completions]:
    """Return the last word of a command line, and its possible completions. Files are not completed here."""
    if not line.startswith("/") or line.startswith("//") or "\n" in line:
        return "", {}
    command, space, rest = line.partition(" ")
    if not space:
        return command, _starting_with(command, _commands())
    word = rest.rpartition(" ")[2]
    return word, _starting_with(word, _arguments(command, word))


def _commands() -> Completions:
    """Return all commands, with a space after those that take arguments."""
    return {f"{name} " if command.arguments else name: command.help for name, command in COMMANDS.items()}


def _arguments(command: str, word: str) -> Completions:
    """Return what may stand in the place of a word after a command."""
    strategies: Completions = {name: strategy.summary for name, strategy in STRATEGIES.items()}
    if command in ("/set", "/compare"):
        return _settings(command, word, strategies)
    if command == "/help":
        commands = {name.removeprefix("/"): found.help for name, found in COMMANDS.items()}
        return commands | {name: field.metadata["help"] for name, field in FIELDS.items()}
    return {
        "/decoding": strategies,
        "/model": dict.fromkeys((BUNDLED_MODEL, *HUB_MODELS), ""),
        "/why": {"all": "the whole text with its prompts"},
        "/stop": {"off": "no stop string"},
        "/seed": {"off": "a new seed for each text"},
    }.get(command, {})


def _settings(command: str, word: str, strategies: Completions) -> Completions:
    """Return the settings that a command takes, or the values of the one before the cursor."""
    known = FIELDS if command == "/set" else {**COMPARE_FIELDS, **FIELDS}
    name, equals, value = word.partition("=")
    if name == "strategies" and equals:
        before = value[: value.rfind(",") + 1]
        return {f"strategies={before}{strategy}": meaning for strategy, meaning in strategies.items()}
    if equals and name in known:
        return {f"{name}={choice}": "" for choice in known[name].metadata["choices"] or ()}
    return {f"{name}=": field.metadata["help"] for name, field in known.items()}


def _starting_with(word: str, found: Completions) -> Completions:
    return {name: meaning for name, meaning in found.items() if name.startswith(word)}
