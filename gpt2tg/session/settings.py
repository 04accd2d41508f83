"""The decoding settings of a session: parsed from `name=value` words, merged, and shown as such words."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from gpt2tg.errors import UserError, nearest
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
from gpt2tg.session.words import shell_words

FIELDS = {field.name: field for field in dataclasses.fields(DecodingOptions)}

# What /compare takes beside the settings: the flags of --compare, by name, with the class that defines each.
COMPARE_CLASSES: dict[str, type[CompareOptions] | type[PromptOptions]] = {
    **{field.name: CompareOptions for field in dataclasses.fields(CompareOptions) if field.name != "compare"},
    **dict.fromkeys(("prompt", "prompts_file", "text_column"), PromptOptions),
}
COMPARE_FIELDS = {
    name: next(field for field in dataclasses.fields(options) if field.name == name)
    for name, options in COMPARE_CLASSES.items()
}

# Shown even at their defaults, if the strategy uses them.
ALWAYS_SHOWN = ("decoding", "temperature", "top_k", "top_p", "num_beams")
# Defaults of a session that differ from those of `DecodingOptions`.
SESSION_DEFAULTS = {"num_sequences": SESSION_SEQUENCES}


def parse_settings(words: str) -> dict[str, Any]:
    """Return the settings in `name=value` words.

    Raises:
        UserError: unknown setting, or a value of the wrong type.
    """
    given: dict[str, Any] = {}
    for word in shell_words(words):
        name, equals, text = word.partition("=")
        name = name.lstrip("-").replace("-", "_")
        if not equals:
            raise UserError(f"{word} has no value: write name=value, such as temperature=0.8")
        if name not in FIELDS:
            near = nearest(name, FIELDS)
            hint = f"did you mean {near}?" if near else "/set lists all settings"
            raise UserError(f"unknown setting {name}: {hint}")
        value = option_value(DecodingOptions, name, text)
        given[name] = given[name] + value if isinstance(value, tuple) and name in given else value
    return given


def with_settings(options: DecodingOptions, given: dict[str, Any]) -> DecodingOptions:
    """Return the options with some settings changed, and those reset that would contradict the change.

    Raises:
        UserError: a value is out of range, or the given settings contradict each other.
    """
    before = dict(vars(options))
    if "max_new_tokens" in given or "max_length" in given:  # one replaces the other
        before |= {"max_new_tokens": None, "max_length": None}
    if given.get("seed") is not None:  # seed and replay replace each other
        before["replay"] = None
    if given.get("replay") is not None:
        before["seed"] = None
    if "num_sequences" not in given and options.num_sequences is not None:  # the new strategy may allow fewer texts
        most = DecodingOptions(**{**before, **given, "num_sequences": None}).most_sequences
        before["num_sequences"] = int(min(options.num_sequences, most))
    return DecodingOptions(**{**before, **given})


def unused_settings(options: DecodingOptions, given: dict[str, Any]) -> list[str]:
    """Return the names of the given settings that the strategy does not use."""
    set_now = [name for name, value in given.items() if value != default_of(DecodingOptions, name)]
    return unused_options(set_now, with_settings(options, given))


def describe_settings(options: DecodingOptions) -> str:
    """Return in one line the settings that the strategy uses and that differ from their defaults."""
    values = _effective_values(options)
    unused = unused_options(values, options)
    shown = {
        name: value
        for name, value in values.items()
        if name not in unused and value is not None
        if name in ALWAYS_SHOWN or value != SESSION_DEFAULTS.get(name, default_of(DecodingOptions, name))
    }
    line = " ".join(
        f"{name}={typed_value(part)}"
        for name, value in shown.items()
        for part in (value if isinstance(value, tuple) else (value,))
    )
    has_new_seeds = options.strategy.samples and options.seed is None and options.replay is None
    return f"{line}, a new seed for each text" if has_new_seeds else line


def explain_setting(name: str, options: DecodingOptions) -> str:
    """Return the help of a setting, with its current value, its choices and its default."""
    if name in COMPARE_FIELDS:
        return flags_as_settings(f"{name}, with /compare: {COMPARE_FIELDS[name].metadata['help']}")
    rule = FIELDS[name].metadata
    lines = [f"{name}={typed_value(_effective_values(options)[name])}: {rule['help']}"]
    if rule["choices"]:
        lines.append(f"choices: {', '.join(rule['choices'])}")
    lines.append(f"default: {rule['shown_default'] or typed_value(default_of(DecodingOptions, name))}")
    return flags_as_settings("\n".join(lines))


def _effective_values(options: DecodingOptions) -> dict[str, Any]:
    """Return all settings by name, with the strategy's defaults filled in."""
    return {**vars(options), "top_k": options.effective_top_k, "top_p": options.effective_top_p}


def typed_value(value: Any) -> str:
    """Return a value as it is typed after `/set name=`."""
    if value is None or value is False or value == ():
        return "off"
    if value is True:
        return "on"
    if isinstance(value, tuple):
        return ",".join(typed_value(part) for part in value)
    text = write_escapes(str(value))
    quote = "'" if '"' in text else '"'
    return text if text and not re.search(r"""[\s'"]""", text) else f"{quote}{text}{quote}"


def flags_as_settings(message: str) -> str:
    """Return a message with its flags (`--top_k 5`) written as settings (`top_k=5`)."""

    known = {**FIELDS, **COMPARE_FIELDS}

    def as_setting(found: re.Match[str]) -> str:
        name, space, value = found.groups()
        if name not in known:
            return found[0]
        if name == "overwrite":
            return f"overwrite=on{space or ''}{value or ''}"
        is_value = value in (known[name].metadata["choices"] or ()) or re.fullmatch(r"[\d.]*\d", value or "")
        return f"{name}={value}" if is_value else f"{name}{space or ''}{value or ''}"

    return re.sub(r"--(\w+)(?:( )([\w.]*\w))?", as_setting, message.replace("--model ", "/model "))


def is_file_option(name: str) -> bool:
    """Whether an option of /compare names a file."""
    return name in COMPARE_FIELDS and str(COMPARE_FIELDS[name].metadata["metavar"]).startswith("FILE")
