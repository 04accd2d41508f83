"""The interactive session: read a prompt, stream its continuation, change settings.

Reading and writing are passed in, so that a transcript can be tested and another front end can be put on it.
"""

from __future__ import annotations

import dataclasses
import difflib
import shlex
from collections.abc import Callable
from typing import Any

from gpt2tg.errors import RunError, UserError
from gpt2tg.generation import Generator, with_seed
from gpt2tg.options import DecodingOptions, default_of, plain_type, unused_options, why_unused

HELP = """\
Type the beginning of a text and Enter: the model goes on from there.
  /set temperature=0.8 top_p=0.95   change settings
  /show                             the settings now
  /help                             this
  /quit                             leave (so does Ctrl-D); Ctrl-C stops a text"""


# Settings that `/show` names though nobody changed them, where the strategy uses them.
ALWAYS_SHOWN = ("decoding", "temperature", "top_k", "top_p", "num_beams")


class Session:
    """A model, the settings of the moment, and a person."""

    def __init__(
        self,
        generator: Generator,
        options: DecodingOptions,
        name: str,
        write: Callable[[str], None],
        say: Callable[[str], None],
    ) -> None:
        self._generator = generator
        self._options = options
        self._name = name
        self._write = write
        self._say = say
        self._commands = {"/set": self._set, "/show": self._show, "/help": self._help}

    def welcome(self) -> None:
        """One line on what is loaded, one on what to do."""
        self._say(f"{self._name} on {self._generator.model.device}, {self._settings()}")
        self._say("Type the beginning of a text, /help for commands, /quit to leave.")

    def run(self, read: Callable[[], str]) -> None:
        """Answer line by line until /quit or until `read` raises EOFError."""
        while True:
            try:
                line = read()
            except EOFError:
                return
            except KeyboardInterrupt:  # Ctrl-C at the prompt throws the line away
                self._say("")
                continue
            if line.split()[:1] == ["/quit"]:
                return
            try:
                self._answer(line)
            except KeyboardInterrupt:  # Ctrl-C stops the text, not the session
                self._write("\n")
                self._say("stopped")
            except (UserError, RunError) as error:
                self._say(f"error: {error}")

    def _answer(self, line: str) -> None:
        word, _, rest = line.strip().partition(" ")
        if word in self._commands:
            self._commands[word](rest)
        elif word.startswith("/"):
            near = difflib.get_close_matches(word, [*self._commands, "/quit"], n=1)
            self._say(f"error: no command {word}; {f'did you mean {near[0]}?' if near else '/help lists them'}")
        elif line.strip():
            self._continue(line)

    def _continue(self, prompt: str) -> None:
        options = self._options if self._options.replay else with_seed(self._options)
        if options.draws > 1 or options.sequences > 1:
            for sample in self._generator.generate(prompt, options):
                self._write(f"{sample.text}\n\n")
        else:
            for number, chunk in enumerate(self._generator.stream(prompt, options)):
                self._write(chunk.text if number else prompt + chunk.text)
            self._write("\n")
        if options.strategy.samples:
            self._say(f"(seed {options.seed})" if options.replay is None else f"(replay {options.replay})")

    def _set(self, rest: str) -> None:
        self._options, unused = changed(self._options, rest)
        for name in unused:
            self._say(f"{name} is not used: {why_unused(name, self._options)}")
        self._say(self._settings())

    def _show(self, _: str) -> None:
        self._say(self._settings())

    def _help(self, _: str) -> None:
        self._say(HELP)

    def _settings(self) -> str:
        """The settings in force: those of the strategy, and those changed from their defaults."""
        options = self._options
        values = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
        values |= {"top_k": options.effective_top_k, "top_p": options.effective_top_p}
        silent = unused_options(values, options)
        shown = {
            name: value
            for name, value in values.items()
            if name not in silent and value is not None
            if name in ALWAYS_SHOWN or value != default_of(DecodingOptions, name)
        }
        return " ".join(f"{name}={value}" for name, value in shown.items())


def changed(options: DecodingOptions, words: str) -> tuple[DecodingOptions, list[str]]:
    """The options after `name=value` words, and the names among them that the strategy does not use.

    Raises:
        UserError: no such setting, or a value it does not take; the options stay as they were.
    """
    fields = {f.name for f in dataclasses.fields(DecodingOptions)}
    given: dict[str, Any] = {}
    for word in _split(words):
        name, equals, text = word.partition("=")
        name = name.replace("-", "_")
        if not equals:
            raise UserError(f"{word} is no setting: write name=value, such as temperature=0.8")
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            raise UserError(f"no setting {name}; {f'did you mean {near[0]}?' if near else '/show lists them'}")
        given[name] = _value(name, text)
    before = dict(vars(options))
    if "max_new_tokens" in given or "max_length" in given:  # a length named now takes the place of the other one
        before |= {"max_new_tokens": None, "max_length": None}
    if "num_sequences" not in given and options.num_sequences is not None:  # bends to a strategy that gives fewer
        most = DecodingOptions(**{**before, **given, "num_sequences": None}).most_sequences
        before["num_sequences"] = int(min(options.num_sequences, most))
    changed_options = DecodingOptions(**{**before, **given})
    set_now = [name for name, value in given.items() if value != default_of(DecodingOptions, name)]
    return changed_options, unused_options(set_now, changed_options)


def _split(words: str) -> list[str]:
    try:
        return shlex.split(words)
    except ValueError as error:
        raise UserError(f"{words} cannot be read: {error}") from None


def _value(name: str, text: str) -> Any:
    """The text as the type of the setting; `off` takes a setting back."""
    kind = plain_type(DecodingOptions, name)
    if text.lower() in ("off", "none") and (default := default_of(DecodingOptions, name)) in (None, (), False):
        return default
    if kind is tuple:
        return (text,)
    if kind is bool:
        if text.lower() in ("on", "true"):
            return True
        raise UserError(f"{text} is no value for it: expected on or off", name)
    try:
        return kind(text)
    except ValueError:
        expected = {int: "a whole number", float: "a number"}[kind]
        raise UserError(f"{text} is no value for it: expected {expected}", name) from None
