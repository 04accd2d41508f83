"""A session: a model, its settings, and a text that grows turn by turn.

It knows no command and no loop. `loop` reads lines, `commands` maps them to what is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt2tg.batch.prompts import trailing_spaces
from gpt2tg.checkpoint.checkpoint import Checkpoint
from gpt2tg.checkpoint.fingerprint import weights_fingerprint
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import Generator, Sample, new_seed, with_seed
from gpt2tg.options import DecodingOptions, default_of
from gpt2tg.options.escapes import read_escapes
from gpt2tg.session.front import Front
from gpt2tg.session.settings import describe_settings, with_settings
from gpt2tg.session.turns import GrowingText, Turn, is_conversation, messages_of

# Notes on how a text ended, by finish reason. The length limit is the usual end and gets no note.
ENDINGS = {
    "eos": "the model ended the text",
    "stop": "ended at a stop string",
    "time": "the time limit was reached",
    "banned": "every token was banned",
}

# With end_at_sentence.
NO_SENTENCE = "(no complete sentence: the text stays as it is)"


class Session:
    """A model, the current settings, and the text so far."""

    def __init__(
        self,
        generator: Generator,
        options: DecodingOptions,
        name: str,
        front: Front,
        load: Callable[[Checkpoint], Generator] | None = None,
    ) -> None:
        """Begin with an empty text.

        Args:
            name: the model's name as the user gave it.
            load: loads another model from its checkpoint; None if the session must keep this one.
        """
        self.generator = generator
        self.options = options
        self.name = name
        self.front = front
        self.load = load
        self.text = GrowingText()
        self.samples: Sequence[Sample] = ()
        """The texts of the last turn, if several were generated."""
        self.chosen: set[str] = set()
        """Names of the settings that the user chose, here or by flags. Another model does not change them."""
        self.tuned: set[str] = set()
        """Names of the settings that came with the model from `--tune --apply`. Another model removes them."""
        self.files: set[Path] = set()
        """Files that this session saved or loaded, and may overwrite."""
        self.failed_lines = 0
        """Number of lines that ended in an error."""
        self._spaces_explained = False
        self._escapes_explained = False

    def choose(self, given: dict[str, Any]) -> None:
        """Change settings by the user's choice.

        Raises:
            UserError: a value is refused; no setting changes.
        """
        self.options = with_settings(self.options, given)
        self.chosen |= given.keys()

    def restore_settings(self, options: DecodingOptions, tuned: Iterable[str]) -> None:
        """Take over the settings of a saved session, and which of them came with its model."""
        self.options, self.tuned = options, set(tuned)
        changed = {name for name, value in vars(options).items() if value != default_of(DecodingOptions, name)}
        self.chosen = changed - self.tuned

    def welcome(self) -> None:
        """Print what is loaded, and what to do."""
        self.front.say(self.description())
        self.front.say("Type the beginning of a text and press Enter. /help lists the commands, /quit leaves.")

    def weights_fingerprint(self) -> str | None:
        """Return the fingerprint of the model's weights; None if they are no longer on disk."""
        checkpoint = self.generator.checkpoint
        try:
            return None if checkpoint is None else weights_fingerprint(checkpoint)
        except (UserError, OSError):
            return None

    def description(self) -> str:
        """Return model, device, precision and settings in one line."""
        model = self.generator.model
        return f"{self.name} on {model.device}, {model.precision}, {describe_settings(self.options)}"

    def read_text(self, typed: str) -> str:
        r"""Return typed text with `\n` and `\t` read as line break and tab; explain this the first time."""
        text = read_escapes(typed)
        if text != typed and not self._escapes_explained:
            self._escapes_explained = True
            self.front.say(r"(\n is read as a line break, \t as a tab; write \\n for a backslash and an n)")
        return text

    def begin(self, prompt: str) -> None:
        """Begin a new text with a prompt, and generate its completion."""
        self.generate_turn((), prompt, self.next_options())

    def continue_text(self, typed: str) -> None:
        """Add what was typed to the text, and generate more."""
        self.generate_turn(self.text.turns, typed, self.next_options())

    def say(self, message: str) -> None:
        """Continue the conversation with a message, or begin one, and generate the answer.

        Raises:
            UserError: the model has no chat template.
        """
        before = self.text.turns if is_conversation(self.text.turns) else ()
        self.generate_turn(before, message, self.next_options(), is_said=True)

    def prompt_of(self, turns: Sequence[Turn], most_tokens: int | None = None) -> str:
        """Return the text that the model reads for turns, the last of which may have no completion yet.

        Args:
            most_tokens: the room for the text. If a conversation is longer, its oldest turns are left out, and a line
                says so. None leaves none out.

        Raises:
            UserError: the turns are a conversation, and the model has no chat template.
        """
        if not is_conversation(turns):
            return "".join(map(str, turns))
        chat, messages = self.generator.chat, messages_of(turns)
        begun = messages.pop()["content"] if messages[-1]["role"] == "assistant" else ""
        kept: Sequence[Mapping[str, str]] = messages
        if most_tokens is not None:
            kept = chat.fitting(messages, most_tokens - len(self.generator.tokenizer.encode(begun)))
        if left_out := len(messages) - len(kept):
            self.front.say(f"(the context is full: the oldest {left_out} messages are left out)")
        return chat.prompt(kept) + begun

    def regenerate(self, options: DecodingOptions) -> None:
        """Generate the last turn again with other options."""
        if not self.text.turns:
            raise UserError("there is no text yet: type its beginning")
        last = self.text.turns[-1]
        choice = last.choice if last.options else 0
        self.generate_turn(self.text.turns[:-1], last.typed, options, choice, last.is_said)

    def generate_turn(
        self,
        before: tuple[Turn, ...],
        typed: str,
        options: DecodingOptions,
        choice: int = 0,
        is_said: bool = False,
    ) -> None:
        """Generate the turn after others, and make it the last one of the text.

        Args:
            choice: index of the text to continue with, if several are generated.
            is_said: whether it is a message of a conversation, to be answered.

        Raises:
            UserError: the text is longer than the context length.
            RunError: the model failed; the text stays as it was.
        """
        turns = (*before, Turn(typed, is_said=is_said))
        if not is_said:
            self._explain_spaces(typed)
        positions = self.generator.model.shape.n_positions
        room = min(options.max_length or positions, positions) - (options.max_new_tokens or 1)
        prompt = self.prompt_of(turns, room)
        decoding, shown = options, None if is_said else typed
        if is_conversation(turns):
            decoding = replace(options, stop=(*options.stop, *self.generator.chat.stop))
        if options.draws > 1 or options.sequences > 1:
            turn = self._generate_several(prompt, shown, decoding, choice)
        else:
            turn = self._stream_one(prompt, shown, decoding)
        turn = replace(turn, typed=typed, options=options, is_said=is_said)
        self.text.change((*before, turn))
        if turn.finish_reason == "interrupted":
            self.front.say("stopped")
        notes = [_replay_note(options), ENDINGS.get(turn.finish_reason or "", "")]
        if line := ", ".join(note for note in notes if note):
            self.front.say(f"({line})")

    def _explain_spaces(self, typed: str) -> None:
        """Explain once in a session why a prompt should not end in a space."""
        line = trailing_spaces([typed])
        if line and not self._spaces_explained:
            self._spaces_explained = True
            self.front.say(line)

    def _stream_one(self, prompt: str, shown: str | None, options: DecodingOptions) -> Turn:
        """Generate one text, and write it while it grows. At a terminal, Ctrl-C keeps what there is.

        Args:
            shown: what is written before it; None before an answer, whose first space is left out too.
        """
        front, written = self.front, ""
        sample: Sample | None = None
        chunks = self.generator.stream(prompt, options)
        try:
            with front.open_text() as write:
                write(front.style.typed(front.style.safe(shown or "")))
                for chunk in chunks:
                    is_begin = shown is None and not written.strip()
                    written += chunk.text
                    write(front.style.safe(chunk.text.lstrip() if is_begin else chunk.text))
                    sample = chunk.sample or sample
        except KeyboardInterrupt:
            if not front.at_terminal:
                raise
        finally:
            front.write("\n")
        self.samples = ()
        if sample is None:
            return Turn(shown or "", written, options, finish_reason="interrupted")
        if sample.is_unfinished:
            front.say(NO_SENTENCE)
        return Turn(shown or "", written, options, finish_reason=sample.finish_reason, ids=sample.ids)

    def _generate_several(self, prompt: str, shown: str | None, options: DecodingOptions, choice: int) -> Turn:
        """Generate several texts, or one of several draws, and write them one below the other."""
        front, samples = self.front, self.generator.generate(prompt, options)
        for number, sample in enumerate(samples, start=1):
            if len(samples) > 1:
                front.say(f"--- text {number} of {len(samples)} ---")
            with front.open_text() as write:
                begin = front.style.typed(front.style.safe(shown or ""))
                completion = sample.completion.lstrip() if shown is None else sample.completion
                write(f"{begin}{front.style.safe(completion)}\n\n")
            if sample.is_unfinished:
                front.say(NO_SENTENCE)
        choice = min(choice, len(samples) - 1)
        if len(samples) > 1:
            front.say(f"The session continues with text {choice + 1}; /pick chooses another.")
        self.samples = samples
        chosen = samples[choice]
        return Turn(shown or "", chosen.completion, options, choice, chosen.finish_reason, chosen.ids)

    def next_options(self) -> DecodingOptions:
        """Return the current settings, with a new seed if none is set."""
        return self.options if self.options.replay else with_seed(self.options)

    def options_for_again(self) -> DecodingOptions:
        """Return the current settings with the random draw of the last turn."""
        last = self.text.turns[-1].options if self.text.turns else None
        if last is None or not self.options.strategy.samples or (last.seed, last.replay) == (None, None):
            return self.next_options()
        return replace(self.options, seed=last.seed, replay=last.replay)

    def options_for_retry(self) -> DecodingOptions:
        """Return the current settings with the next random draw of the last turn's seed, or with a new seed.

        Raises:
            UserError: the strategy is deterministic.
        """
        options = self.options
        if not options.strategy.samples:
            raise UserError(
                f"{options.decoding} is deterministic: choose a strategy that samples, such as /decoding top_p"
            )
        last = self.text.turns[-1].options if self.text.turns else None
        if last is None or not last.strategy.samples:
            return self.next_options()
        if options.strategy.beams or options.best_of or options.sequences > 1:
            return replace(options, seed=new_seed(), replay=None)
        seed, prompt, number = last.replayed() or (last.seed, 0, 0)
        return replace(options, seed=None, replay=f"{seed}/{prompt}/{number + 1}")


def _replay_note(options: DecodingOptions) -> str:
    """Return the seed or replay that generates a sampled text again; empty for deterministic strategies."""
    if not options.strategy.samples:
        return ""
    return f"seed {options.seed}" if options.replay is None else f"replay {options.replay}"
