"""A session: lines in, texts and answers out, through a front that is passed in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt2tg.batch.prompts import trailing_spaces
from gpt2tg.checkpoint.checkpoint import Checkpoint
from gpt2tg.errors import RunError, UserError
from gpt2tg.generation.generator import Generator, Sample, new_seed, with_seed
from gpt2tg.options import DecodingOptions, default_of
from gpt2tg.options.escapes import read_escapes
from gpt2tg.session.commands import Quit, find_command
from gpt2tg.session.front import Front
from gpt2tg.session.settings import FIELDS, in_force, merged, without_dashes
from gpt2tg.session.state import GrowingText, Turn

# What people type to leave or to get help where commands have no slash.
BARE_WORDS = {"quit": "/quit", "exit": "/quit", "q": "/quit", "help": "/help", "?": "/help"}

# Why a text ended, where it is worth saying.
ENDINGS = {
    "eos": "the model ended the text",
    "stop": "ended at a stop string",
    "time": "time was up",
    "banned": "no token was left",
}


# With end_at_sentence.
NO_SENTENCE = "(no sentence is complete: the text stays as it is)"


class Session:
    """A model, the settings of the moment, the text so far, and a person."""

    def __init__(
        self,
        generator: Generator,
        options: DecodingOptions,
        name: str,
        front: Front,
        load: Callable[[Checkpoint], Generator] | None = None,
    ) -> None:
        """`name` is what the model was called by; `load` loads another one, if that is possible."""
        self.generator = generator
        self.options = options
        self.name = name
        self.front = front
        self.load = load
        self.text = GrowingText()
        self.beside: Sequence[Sample] = ()
        """The texts of the last turn, where several were written side by side."""
        self.chosen: set[str] = set()
        """Settings that the person has chosen, here or by flags: another model does not change them."""
        self.brought: set[str] = set()
        """Settings that the model brought along, and that leave with it."""
        self.files: set[Path] = set()
        """Files that were saved or loaded here, and may be written over."""
        self._told_of_spaces = False
        self.refused = 0
        """Lines that ended in an error."""
        self._escapes_explained = False

    def choose(self, given: dict[str, Any]) -> None:
        """Change settings as the person says.

        Raises:
            UserError: a value that is refused.
        """
        self.options = merged(self.options, given)
        self.chosen |= given.keys()

    def take_up(self, options: DecodingOptions, brought: Iterable[str]) -> None:
        """Go on with the settings of another session, of which the model there brought some along."""
        self.options, self.brought = options, set(brought)
        changed = {name for name, value in vars(options).items() if value != default_of(DecodingOptions, name)}
        self.chosen = changed - self.brought

    def welcome(self) -> None:
        """One line on what is loaded, one on what to do."""
        self.front.say(self.description())
        self.front.say("Type the beginning of a text and press Enter. /help lists the commands, /quit leaves.")

    def description(self) -> str:
        """Model, device, precision, settings and seed."""
        model = self.generator.model
        return f"{self.name} on {model.device}, {model.precision}, {in_force(self.options)}"

    def run(self, first: str | None = None) -> None:
        """Answer line by line until /quit or the end of the input.

        Args:
            first: a text to begin with.
        """
        if first is not None:
            self._guarded(lambda: self.begin(first))
        while self._goes_on():
            pass

    def _goes_on(self) -> bool:
        """Answer the next line; False when it was the last."""
        try:
            self.answer(self.front.read())
        except (EOFError, Quit):
            return False
        except KeyboardInterrupt:  # Ctrl-C at the prompt throws the line away
            if not self.front.at_terminal:
                raise
            self.front.say("")
        return True

    def answer(self, line: str) -> None:
        """Answer one line: a command, or the beginning of a text.

        Raises:
            Quit: the line says so.
        """
        if not line.strip():
            return
        self._guarded(lambda: self._answer(line))

    def _guarded(self, action: Callable[[], None]) -> None:
        """What goes wrong is said, and the session goes on."""
        try:
            with self.front.unechoed():
                action()
        except KeyboardInterrupt:
            if not self.front.at_terminal:
                raise
            self.front.say("stopped")
        except (UserError, RunError) as error:
            self.refused += 1
            self.front.say(f"{self.front.style.error('error:')} {without_dashes(str(error))}")

    def _answer(self, line: str) -> None:
        if line.startswith("//"):
            self.begin(self.text_of(line[1:]))
        elif line.lstrip().startswith("/"):
            word, _, rest = line.strip().partition(" ")
            find_command(word).action(self, rest.strip())
        elif self.front.at_terminal and (meant := _command_meant(line.strip())):
            self.front.say(f"Did you mean {meant}? To continue the words themselves: /new {line.strip()}")
        else:
            self.begin(self.text_of(line))

    def text_of(self, typed: str) -> str:
        """Return the text that was typed, with its line breaks and tabs; the first time with a word on how to write
        a backslash."""
        text = read_escapes(typed)
        if text != typed and not self._escapes_explained:
            self._escapes_explained = True
            self.front.say(r"(\n is read as a line break, \t as a tab; write \\n for a backslash and an n)")
        return text

    def begin(self, prompt: str) -> None:
        """Write to the beginning of a new text."""
        self.write((), prompt, self._options_now())

    def go_on(self, typed: str) -> None:
        """Write more of the text, after what was typed to it."""
        self.write(self.text.turns, typed, self._options_now())

    def rewrite(self, options: DecodingOptions) -> None:
        """Write the last turn again."""
        if not self.text.turns:
            raise UserError("there is no text yet: type its beginning")
        last = self.text.turns[-1]
        self.write(self.text.turns[:-1], last.typed, options, last.choice if last.options else 0)

    def write(self, before: tuple[Turn, ...], typed: str, options: DecodingOptions, choice: int = 0) -> None:
        """Write the turn after others, and make it the last of the text.

        Args:
            choice: which one to take of several texts, where there are so many.

        Raises:
            UserError: the text is too long for the model.
            RunError: the model failed; the text stays as it was.
        """
        self._tell_of_spaces(typed)
        prompt = "".join(turn.typed + turn.written for turn in before) + typed
        if options.draws > 1 or options.sequences > 1:
            turn = self._write_several(prompt, typed, options, choice)
        else:
            turn = self._write_one(prompt, typed, options)
        self.text.change((*before, turn))
        if turn.finish_reason == "interrupted":
            self.front.say("stopped")
        notes = [_draw(options), ENDINGS.get(turn.finish_reason or "", "")]
        if said := ", ".join(note for note in notes if note):
            self.front.say(f"({said})")

    def _tell_of_spaces(self, typed: str) -> None:
        """Once a session."""
        line = trailing_spaces([typed])
        if line and not self._told_of_spaces:
            self._told_of_spaces = True
            self.front.say(line)

    def _write_one(self, prompt: str, typed: str, options: DecodingOptions) -> Turn:
        """Stream it. Ctrl-C ends it there."""
        front, written, reason, ids, is_unfinished = self.front, "", "interrupted", (), False
        chunks = self.generator.stream(prompt, options)
        try:
            with front.text() as write:
                write(front.style.typed(front.style.shown(typed)))
                for chunk in chunks:
                    written += chunk.text
                    write(front.style.shown(chunk.text))
                    if chunk.sample:
                        reason, ids = chunk.sample.finish_reason, chunk.sample.ids
                        is_unfinished = chunk.sample.is_unfinished
        except KeyboardInterrupt:
            if not front.at_terminal:
                raise
        finally:
            front.write("\n")
        self.beside = ()
        if is_unfinished:
            front.say(NO_SENTENCE)
        return Turn(typed, written, options, 0, reason, ids)

    def _write_several(self, prompt: str, typed: str, options: DecodingOptions, choice: int) -> Turn:
        front, samples = self.front, self.generator.generate(prompt, options)
        for number, sample in enumerate(samples, start=1):
            if len(samples) > 1:
                front.say(f"--- text {number} of {len(samples)} ---")
            with front.text() as write:
                write(f"{front.style.typed(front.style.shown(typed))}{front.style.shown(sample.completion)}\n\n")
            if sample.is_unfinished:
                front.say(NO_SENTENCE)
        choice = min(choice, len(samples) - 1)
        if len(samples) > 1:
            front.say(f"The text goes on with number {choice + 1}; /pick takes another.")
        self.beside = samples
        chosen = samples[choice]
        return Turn(typed, chosen.completion, options, choice, chosen.finish_reason, chosen.ids)

    def _options_now(self) -> DecodingOptions:
        return self.options if self.options.replay else with_seed(self.options)

    def options_for_again(self) -> DecodingOptions:
        """The settings of now, with the seed and the draw of the last turn."""
        last = self.text.turns[-1].options if self.text.turns else None
        if last is None or not self.options.strategy.samples or (last.seed, last.replay) == (None, None):
            return self._options_now()
        return replace(self.options, seed=last.seed, replay=last.replay)

    def options_for_retry(self) -> DecodingOptions:
        """The settings of now, with the next draw of the last turn's seed, or with a new seed.

        Raises:
            UserError: the strategy does not draw.
        """
        options = self.options
        if not options.strategy.samples:
            raise UserError(f"{options.decoding} writes the same text every time: choose /decoding top_p, say, to draw")
        last = self.text.turns[-1].options if self.text.turns else None
        if last is None or not last.strategy.samples:
            return self._options_now()
        if options.strategy.beams or options.best_of or options.sequences > 1:
            return replace(options, seed=new_seed(), replay=None)
        seed, prompt, number = last.replayed() or (last.seed, 0, 0)
        return replace(options, seed=None, replay=f"{seed}/{prompt}/{number + 1}")


def _command_meant(line: str) -> str | None:
    """The command that a person may mean who forgot its slash."""
    setting = re.fullmatch(r"(?:set )?([\w-]+)=\S+", line)
    if setting and setting[1].replace("-", "_") in FIELDS:
        return f"/set {line.removeprefix('set ')}"
    return BARE_WORDS.get(line.lower())


def _draw(options: DecodingOptions) -> str:
    """What brings a drawn text back."""
    if not options.strategy.samples:
        return ""
    return f"seed {options.seed}" if options.replay is None else f"replay {options.replay}"
