"""A prompt, or several, through the strategies: `--compare` for a session."""

from __future__ import annotations

import difflib
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2tg.comparison.strategies import parse_strategies
from gpt2tg.errors import UserError
from gpt2tg.options import SESSION_SEQUENCES, CompareOptions, DecodingOptions, PromptOptions, only, option_value
from gpt2tg.options.escapes import read_escapes
from gpt2tg.session.settings import COMPARING, FIELDS, first_word, merged, names_file, without_dashes

if TYPE_CHECKING:
    from gpt2tg.session.session import Session

# A name and the sign after it, at the beginning of what is still to be read.
SETTING = re.compile(r"-*([A-Za-z][\w-]*)=")

# A comparison goes through all strategies, and its texts are none that was there before.
NOT_COMPARED = ("decoding", "replay")


def compare(session: Session, words: str) -> None:
    """`name=value` words, and after them a prompt; without one the last one of the session."""
    given = _given(words)
    for name in given:
        if names_file(name):
            given[name] = str(Path(given[name]).expanduser())
    where, options = CompareOptions(**only(CompareOptions, given)), _options(session, given)

    def say(line: str) -> None:
        session.front.say(without_dashes(line))

    parse_strategies(options, where.strategies, say=lambda _: None)  # refuses before anything is read
    # What counts words takes a second to import, which a session need not wait for when it begins.
    from gpt2tg.comparison.run import prompt_texts, read_inputs, run_comparison

    if "prompts_file" in given:
        if "prompt" in given:
            say("prompt is not used: the prompts come from prompts_file")
        prompts = prompt_texts(PromptOptions(**only(PromptOptions, given)), say)
    elif "prompt" in given:
        prompts = [given["prompt"]]
    else:
        prompts = [] if where.reference is not None else [_last_prompt(session)]
    inputs = read_inputs(where, prompts, say, given.get("text_column"))
    run_comparison(
        inputs,
        generator=session.generator,
        name=session.name,
        base=options,
        chosen=where.strategies,
        write=lambda text: session.front.write(session.front.style.shown(text)),
        say=say,
        columns=session.front.width(),
    )
    for file in filter(None, (inputs.output, inputs.report)):
        say(f"the comparison is in {file}")


def _given(words: str) -> dict[str, Any]:
    """What was set, and the prompt that follows it, by the names of the flags.

    Raises:
        UserError: no such name, or a value it does not take.
    """
    found: dict[str, Any] = {}
    while setting := SETTING.match(words):
        name = setting[1].replace("-", "_")
        word, words = first_word(words)
        text = word.partition("=")[2]
        if name in FIELDS and name not in NOT_COMPARED:
            value = option_value(DecodingOptions, name, text)
            found[name] = found[name] + value if isinstance(value, tuple) and name in found else value
        elif name in COMPARING:
            found[name] = option_value(COMPARING[name], name, text)
        else:
            raise UserError(f"{name} is nothing that /compare takes; {_hint(name)}")
    return found | ({"prompt": read_escapes(words)} if words else {})


def _hint(name: str) -> str:
    if name in NOT_COMPARED:
        return "strategies=greedy,top_p chooses what is compared"
    near = difflib.get_close_matches(name, [*COMPARING, *FIELDS.keys() - set(NOT_COMPARED)], n=1)
    return f"did you mean {near[0]}?" if near else f'/help compare lists what it does. A prompt: prompt="{name}=..."'


def _options(session: Session, given: dict[str, Any]) -> DecodingOptions:
    """The settings of the session that all strategies share, changed by those that were given."""
    now = session.options
    count = now.num_sequences if now.num_sequences != SESSION_SEQUENCES else None
    shared = replace(now, decoding="top_p", num_sequences=count, best_of=None, replay=None)
    return merged(shared, only(DecodingOptions, given))


def _last_prompt(session: Session) -> str:
    turns = session.text.turns
    if not turns or not (prompt := session.text.before_last + turns[-1].typed):
        raise UserError("there is no prompt yet: write /compare and the beginning of a text")
    return prompt
