"""The settings of a session: changed by name, and shown in one line."""

from __future__ import annotations

import dataclasses
import re
import shlex
from typing import Any

from gpt2tg.errors import UserError, did_you_mean
from gpt2tg.options import (
    SESSION_SEQUENCES,
    CompareOptions,
    DecodingOptions,
    PromptOptions,
    default_of,
    option_value,
    unused_options,
)
from gpt2tg.options.escapes import write_escapes

FIELDS = {field.name: field for field in dataclasses.fields(DecodingOptions)}

# What /compare takes besides, by the names of the flags of --compare, and where each has its home.
COMPARING = {
    **{field.name: CompareOptions for field in dataclasses.fields(CompareOptions) if field.name != "compare"},
    **dict.fromkeys(("prompt", "prompts_file", "text_column"), PromptOptions),
}
COMPARING_FIELDS = {
    name: next(field for field in dataclasses.fields(options) if field.name == name)
    for name, options in COMPARING.items()
}

# Settings that are shown though nobody changed them, where the strategy uses them.
ALWAYS_SHOWN = ("decoding", "temperature", "top_k", "top_p", "num_beams")
# What a session has instead of a default.
USUAL = {"num_sequences": SESSION_SEQUENCES}


def changed(options: DecodingOptions, words: str) -> tuple[DecodingOptions, list[str]]:
    """The options after `name=value` words, and the names among them that the strategy does not use.

    Raises:
        UserError: no such setting, or a value it does not take; the options stay as they were.
    """
    given = given_in(words)
    return merged(options, given), unused(options, given)


def given_in(words: str) -> dict[str, Any]:
    """The settings that `name=value` words name.

    Raises:
        UserError: no such setting, or a value of another type.
    """
    given: dict[str, Any] = {}
    for word in split(words):
        name, equals, text = word.partition("=")
        name = name.lstrip("-").replace("-", "_")
        if not equals:
            raise UserError(f"{word} is no setting: write name=value, such as temperature=0.8")
        if name not in FIELDS:
            raise UserError(f"no setting {name}; {did_you_mean(name, FIELDS, '/set lists them')}")
        value = option_value(DecodingOptions, name, text)
        given[name] = given[name] + value if isinstance(value, tuple) and name in given else value
    return given


def merged(options: DecodingOptions, given: dict[str, Any]) -> DecodingOptions:
    """The options with some of them changed, and those bent that would contradict.

    Raises:
        UserError: a value that is refused.
    """
    before = dict(vars(options))
    if "max_new_tokens" in given or "max_length" in given:  # a length named now takes the place of the other one
        before |= {"max_new_tokens": None, "max_length": None}
    if given.get("seed") is not None:  # so does a seed
        before["replay"] = None
    if given.get("replay") is not None:
        before["seed"] = None
    if "num_sequences" not in given and options.num_sequences is not None:  # bends to a strategy that gives fewer
        most = DecodingOptions(**{**before, **given, "num_sequences": None}).most_sequences
        before["num_sequences"] = int(min(options.num_sequences, most))
    return DecodingOptions(**{**before, **given})


def unused(options: DecodingOptions, given: dict[str, Any]) -> list[str]:
    """The names among those given that the strategy does not use."""
    set_now = [name for name, value in given.items() if value != default_of(DecodingOptions, name)]
    return unused_options(set_now, merged(options, given))


def split(words: str) -> list[str]:
    """Words as a shell splits them, so that quotes hold a value with spaces together.

    Raises:
        UserError: a quote that is not closed.
    """
    found = []
    while words.strip():
        word, words = first_word(words)
        found.append(word)
    return found


def first_word(words: str) -> tuple[str, str]:
    """The first word as a shell reads it, and the rest as it stands.

    Raises:
        UserError: a quote that is not closed.
    """
    reader = shlex.shlex(words, posix=True, punctuation_chars=False)
    reader.whitespace_split, reader.commenters, reader.escape = True, "", ""
    try:
        word = reader.get_token()
    except ValueError as error:
        raise UserError(f"{words} cannot be read: {error}") from None
    return word or "", reader.instream.read().lstrip()


def in_force(options: DecodingOptions) -> str:
    """One line: the settings of the strategy, and those changed from their defaults."""
    values = _effective(options)
    silent = unused_options(values, options)
    shown = {
        name: value
        for name, value in values.items()
        if name not in silent and value is not None
        if name in ALWAYS_SHOWN or value != USUAL.get(name, default_of(DecodingOptions, name))
    }
    line = " ".join(
        f"{name}={as_typed(part)}"
        for name, value in shown.items()
        for part in (value if isinstance(value, tuple) else (value,))
    )
    is_drawn = options.strategy.samples and options.seed is None and options.replay is None
    return f"{line}, a new seed for each text" if is_drawn else line


def explained(name: str, options: DecodingOptions) -> str:
    """What a setting does, what it is now, and what it is unless set."""
    if name in COMPARING_FIELDS:
        return without_dashes(f"{name}, with /compare: {COMPARING_FIELDS[name].metadata['help']}")
    rule = FIELDS[name].metadata
    lines = [f"{name}={as_typed(_effective(options)[name])}: {rule['help']}"]
    if rule["choices"]:
        lines.append(f"choices: {', '.join(rule['choices'])}")
    default = default_of(DecodingOptions, name)
    lines.append(f"default: {rule['shown_default'] or as_typed(default)}")
    return without_dashes("\n".join(lines))


def _effective(options: DecodingOptions) -> dict[str, Any]:
    return {**vars(options), "top_k": options.effective_top_k, "top_p": options.effective_top_p}


def as_typed(value: Any) -> str:
    """A value as `/set` takes it."""
    if value is None or value is False or value == ():
        return "off"
    if value is True:
        return "on"
    if isinstance(value, tuple):
        return ",".join(as_typed(part) for part in value)
    text = write_escapes(str(value))
    quote = "'" if '"' in text else '"'
    return text if text and not re.search(r"""[\s'"]""", text) else f"{quote}{text}{quote}"


def without_dashes(message: str) -> str:
    """A message that speaks of flags, as it is said where settings are typed without dashes."""

    known = {**FIELDS, **COMPARING_FIELDS}

    def setting(found: re.Match[str]) -> str:
        name, space, value = found.groups()
        if name not in known:
            return found[0]
        if name == "overwrite":
            return f"overwrite=on{space or ''}{value or ''}"
        is_value = value in (known[name].metadata["choices"] or ()) or re.fullmatch(r"[\d.]*\d", value or "")
        return f"{name}={value}" if is_value else f"{name}{space or ''}{value or ''}"

    return re.sub(r"--(\w+)(?:( )([\w.]*\w))?", setting, message.replace("--model ", "/model "))


def names_file(name: str) -> bool:
    """Whether the value of what /compare takes is the name of a file."""
    return name in COMPARING_FIELDS and str(COMPARING_FIELDS[name].metadata["metavar"]).startswith("FILE")


def number(words: str, most: int | None, what: str) -> int:
    """A word as a number from 1.

    Args:
        most: the largest one allowed, if any.
        what: what it would be, for the message.

    Raises:
        UserError: it is none, or too large.
    """
    if not words.isdecimal() or int(words) < 1 or (most is not None and int(words) > most):
        bound = "1 or more" if most is None else f"1 to {most}"
        raise UserError(f"{words or 'nothing'} is not {what}: write a number, {bound}")
    return int(words)
