"""/compare: compare strategies on a prompt or on several, with the options of `--compare`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt2tg.comparison.strategies import parse_strategies
from gpt2tg.errors import UserError, nearest
from gpt2tg.options import SESSION_SEQUENCES, CompareOptions, DecodingOptions, PromptOptions, only, option_value
from gpt2tg.options.escapes import read_escapes
from gpt2tg.session.session import Session
from gpt2tg.session.settings import COMPARE_CLASSES, FIELDS, flags_as_settings, is_file_option, with_settings
from gpt2tg.session.words import first_shell_word

# An option at the beginning of the words that are still to be read.
OPTION = re.compile(r"-*([A-Za-z][\w-]*)=")

# Settings that /compare does not take: it compares all strategies, with new texts.
NOT_COMPARED = ("decoding", "replay")


def compare(session: Session, words: str) -> None:
    """Compare strategies on the prompt after the `name=value` options; without one, on the last prompt."""
    given = _parse(words)
    options, shared = CompareOptions(**only(CompareOptions, given)), _shared_settings(session, given)

    def say(line: str) -> None:
        session.front.say(flags_as_settings(line))

    parse_strategies(shared, options.strategies, say=lambda _: None)  # fails before any file is read
    # The libraries behind the metrics take a second to import, which the start of a session need not wait for.
    from gpt2tg.comparison.run import read_inputs, run_comparison

    prompts = _prompts(session, given, say)
    inputs = read_inputs(options, prompts, say, given.get("text_column"))
    run_comparison(
        inputs,
        generator=session.generator,
        name=session.name,
        base=shared,
        chosen=options.strategies,
        write=lambda text: session.front.write(session.front.style.safe(text)),
        say=say,
        columns=session.front.width(),
    )
    for file in filter(None, (inputs.output, inputs.report)):
        say(f"comparison written to {file}")


def _parse(words: str) -> dict[str, Any]:
    """Return the options by name, and the prompt that follows them.

    Raises:
        UserError: unknown option, or a value that it does not accept.
    """
    found: dict[str, Any] = {}
    while option := OPTION.match(words):
        name = option[1].replace("-", "_")
        word, words = first_shell_word(words)
        text = word.partition("=")[2]
        if name in FIELDS and name not in NOT_COMPARED:
            value = option_value(DecodingOptions, name, text)
            found[name] = found[name] + value if isinstance(value, tuple) and name in found else value
        elif name in COMPARE_CLASSES:
            value = option_value(COMPARE_CLASSES[name], name, text)
            found[name] = str(Path(value).expanduser()) if value and is_file_option(name) else value
        else:
            raise UserError(f"/compare has no option {name}: {_hint(name)}")
    return found | ({"prompt": read_escapes(words)} if words else {})


def _hint(name: str) -> str:
    if name in NOT_COMPARED:
        return "choose what to compare with strategies=greedy,top_p"
    near = nearest(name, [*COMPARE_CLASSES, *FIELDS.keys() - set(NOT_COMPARED)])
    if near:
        return f"did you mean {near}?"
    return f'/help compare lists the options; write a prompt that begins like one as prompt="{name}=..."'


def _shared_settings(session: Session, given: dict[str, Any]) -> DecodingOptions:
    """Return the settings that all strategies share: those of the session, changed by the given ones."""
    now = session.options
    count = now.num_sequences if now.num_sequences != SESSION_SEQUENCES else None
    shared = replace(now, decoding="top_p", num_sequences=count, best_of=None, replay=None)
    return with_settings(shared, only(DecodingOptions, given))


def _prompts(session: Session, given: dict[str, Any], say: Callable[[str], None]) -> list[str]:
    """Return the prompts of the file or of the command, or the last prompt; none if the reference gives them."""
    from gpt2tg.comparison.run import prompt_texts

    if "prompts_file" in given:
        if "prompt" in given:
            say("prompt is not used: the prompts come from prompts_file")
        return prompt_texts(PromptOptions(**only(PromptOptions, given)), say)
    if "prompt" in given:
        return [given["prompt"]]
    return [] if given.get("reference") is not None else [_last_prompt(session)]


def _last_prompt(session: Session) -> str:
    turns = session.text.turns
    if not turns or not (prompt := session.prompt_of((*turns[:-1], replace(turns[-1], written="")))):
        raise UserError("there is no prompt yet: write /compare and the beginning of a text")
    return prompt
