"""What the beginning of a line may become: commands, names of settings, and their values."""

from __future__ import annotations

from gpt2tg.options import BUNDLED_MODEL, HUB_MODELS, STRATEGIES
from gpt2tg.session.commands import COMMANDS
from gpt2tg.session.settings import COMPARING_FIELDS, FIELDS

# What can be typed, and what it means.
Completions = dict[str, str]


def completions(line: str) -> tuple[str, Completions]:
    """The last word of a line that begins with a slash, and what it may become.

    Files are not completed here.
    """
    if not line.startswith("/") or line.startswith("//") or "\n" in line:
        return "", {}
    command, space, rest = line.partition(" ")
    if not space:
        return command, _beginning_with(command, _commands())
    word = rest.rpartition(" ")[2]
    return word, _beginning_with(word, _arguments(command, word))


def _commands() -> Completions:
    """A space stands where more may follow."""
    return {f"{name} " if found.arguments else name: found.help for name, found in COMMANDS.items()}


def _arguments(command: str, word: str) -> Completions:
    settings = {name: field.metadata["help"] for name, field in FIELDS.items()}
    strategies = {name: strategy.summary for name, strategy in STRATEGIES.items()}
    if command in ("/set", "/compare"):
        known = FIELDS if command == "/set" else {**COMPARING_FIELDS, **FIELDS}
        name, equals, value = word.partition("=")
        if name == "strategies" and equals:
            before = value[: value.rfind(",") + 1]
            return {f"strategies={before}{strategy}": meaning for strategy, meaning in strategies.items()}
        if equals and name in known:
            return {f"{name}={choice}": "" for choice in known[name].metadata["choices"] or ()}
        return {f"{name}=": field.metadata["help"] for name, field in known.items()}
    if command == "/help":
        return {**{name.removeprefix("/"): found.help for name, found in COMMANDS.items()}, **settings}
    return {
        "/decoding": strategies,
        "/model": dict.fromkeys((BUNDLED_MODEL, *HUB_MODELS), ""),
        "/why": {"all": "the whole text, its prompts too"},
        "/stop": {"off": "end nowhere"},
        "/seed": {"off": "a new seed for each text"},
    }.get(command, {})


def _beginning_with(word: str, found: Completions) -> Completions:
    return {name: meaning for name, meaning in found.items() if name.startswith(word)}
