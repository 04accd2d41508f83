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
from gpt2tg.generation import Generator, new_seed
from gpt2tg.options import DecodingOptions, decoding_options, plain_type, unused_options

HELP = """\
Type the beginning of a text and Enter: the model goes on from there.
  /set temperature=0.8 top_p=0.95   change settings
  /show                             the settings now
  /help                             this
  /quit                             leave (so does Ctrl-D); Ctrl-C stops a text"""


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
            if line.strip() == "/quit":
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
        options = self._options
        if options.strategy.samples and options.seed is None:
            options = dataclasses.replace(options, seed=new_seed())
        several = options.num_sequences > 1
        if several:
            for sample in self._generator.generate(prompt, options):
                self._write(f"{sample.text}\n\n")
        else:
            for number, chunk in enumerate(self._generator.stream(prompt, options)):
                self._write(chunk.text if number else prompt + chunk.text)
            self._write("\n")
        if options.strategy.samples:
            self._say(f"(seed {options.seed})")

    def _set(self, rest: str) -> None:
        self._options, unused = changed(self._options, rest)
        for name in unused:
            self._say(f"{name} is not used: {self._options.decoding} has no use for it")
        self._say(self._settings())

    def _show(self, _: str) -> None:
        self._say(self._settings())

    def _help(self, _: str) -> None:
        self._say(HELP)

    def _settings(self) -> str:
        options = self._options
        given = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
        given.update(top_k=options.effective_top_k, top_p=options.effective_top_p)
        silent = unused_options(given, options)
        shown = {name: value for name, value in given.items() if name not in silent and value is not None}
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
    # A length named now takes the place of the other one; what was set before does not stand in its way.
    before = {name: value for name, value in vars(options).items() if name != "num_sequences"}
    if given.get("max_new_tokens") is not None:
        before["max_length"] = None
    if given.get("max_length") is not None:
        before["max_new_tokens"] = None
    wish = {} if "num_sequences" in given else {"num_sequences": options.num_sequences}
    return _checked(before, given, wish)


def _checked(before: dict[str, Any], given: dict[str, Any], wish: dict[str, Any]) -> tuple[DecodingOptions, list[str]]:
    options = decoding_options({**before, **given}, **wish)
    return options, unused_options(given, options)


def _split(words: str) -> list[str]:
    try:
        return shlex.split(words)
    except ValueError as error:
        raise UserError(f"{words} cannot be read: {error}") from None


def _value(name: str, text: str) -> Any:
    """The text as the type of the setting; `none` and `off` take a setting back."""
    if text.lower() in ("none", "off"):
        return None
    kind = plain_type(DecodingOptions, name)
    try:
        return kind(text)
    except ValueError:
        expected = {int: "a whole number", float: "a number"}[kind]
        raise UserError(f"{text} is no value for it: expected {expected}", name) from None
