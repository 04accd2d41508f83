"""Session: continue texts line by line, at a terminal or from stdin."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from gpt2tg.checkpoint.checkpoint import Checkpoint
from gpt2tg.checkpoint.tuned_settings import with_settings
from gpt2tg.commands.flags import Flags, flags_of, notice_unused
from gpt2tg.commands.generate import notice_unused_decoding
from gpt2tg.commands.loading import ModelChoice, load_generator, start_loading
from gpt2tg.commands.output import write_text
from gpt2tg.errors import UserError
from gpt2tg.io.processes import require_single_process
from gpt2tg.io.signals import SessionSignals
from gpt2tg.io.streams import notice
from gpt2tg.options import SESSION_NEW_TOKENS, SESSION_SEQUENCES, DecodingOptions, why_unused

if TYPE_CHECKING:  # imports torch
    from gpt2tg.generation.generator import Generator
    from gpt2tg.session import Front

# Flags that contradict a session, which reads its prompts and writes its texts one by one.
REFUSED = ("prompts_file", "output", "format", "show_probabilities", "candidates", "score")

# Flags that have no effect there.
UNUSED = ("overwrite", "batch_size", "text_column")


@dataclass(frozen=True)
class SessionCommand:
    """With which settings and text a session begins."""

    decoding: DecodingOptions
    prompt: str | None
    """The first text; None to begin without one."""
    is_said: bool
    """Whether the first text is the first message of a conversation."""
    given: frozenset[str]

    @classmethod
    def from_flags(cls, flags: Flags) -> SessionCommand:
        """Build the command.

        Raises:
            UserError: a flag that contradicts a session, a value out of range, or flags that contradict each other.
        """
        for flag in REFUSED:
            if flag in flags.names:
                raise UserError(
                    f"and --{flag} contradict each other: a session reads and writes line by line", "interactive"
                )
        prompt = str(flags.values["prompt"]) if "prompt" in flags.names else None
        is_said = "chat" in flags.names and prompt is not None
        return cls(flags.decoding(num_sequences=SESSION_SEQUENCES), prompt, is_said, flags.names)


def session(model: ModelChoice, command: SessionCommand) -> None:
    """Run a session until the user leaves, or until the end of stdin.

    Raises:
        UserError: the model cannot be used, or lines of stdin were refused.
    """
    require_single_process("a session is for")
    notice_unused(command.given, UNUSED, "a session writes text by text")
    if not command.is_said:
        notice_unused(command.given, ["chat"], "there is no --prompt; /say begins a conversation")
    with SessionSignals() as signals:
        _run(model, command, signals)


def _run(model: ModelChoice, command: SessionCommand, signals: SessionSignals) -> None:
    notice_unused_decoding(command.decoding, command.given)
    if "prompt_lookup" not in command.decoding.strategy.uses:
        notice_unused(command.given, ["draft_model"], why_unused("draft_model", command.decoding))
    model.check_device()
    loading = start_loading(model)
    tuned = loading.tuned_settings(command.decoding, command.given)

    from gpt2tg.session import Session
    from gpt2tg.session.loop import run

    generator = loading.finish()
    decoding = _with_length(with_settings(command.decoding, tuned), generator, command.given)
    front = _front(signals)

    load = partial(_load_another, model, loading.draft)
    session = Session(generator, decoding, loading.checkpoint.name, front, load)
    session.chosen.update(command.given.intersection(flags_of(DecodingOptions)))
    session.tuned = set(tuned)
    if front.at_terminal:
        session.welcome()
    run(session, command.prompt, command.is_said)
    if session.failed_lines and not front.at_terminal:
        raise UserError(f"{session.failed_lines} of the lines could not be answered")


def _load_another(model: ModelChoice, draft: Checkpoint | None, checkpoint: Checkpoint) -> Generator:
    """Load another model on the device and in the precision of the flags, and its draft if it has the same tokens."""
    try:
        return load_generator(checkpoint, model.device, model.precision, draft=draft)
    except UserError as error:
        if draft is None or error.option != draft.option:
            raise
        notice(error.as_flag())
        return load_generator(checkpoint, model.device, model.precision)


def _with_length(options: DecodingOptions, generator: Generator, given: frozenset[str]) -> DecodingOptions:
    """Return the options with the length that a session writes at a time, unless a flag gives one."""
    if not given.isdisjoint({"max_length", "max_new_tokens"}):
        return options
    return replace(options, max_new_tokens=min(SESSION_NEW_TOKENS, generator.model.shape.n_positions // 2))


def _front(signals: SessionSignals) -> Front:
    """Return the line editor at a terminal that can show it, and plain streams otherwise."""
    from gpt2tg.session.front import can_edit_lines, plain_front

    if can_edit_lines():
        try:
            from gpt2tg.session.terminal import terminal_front

            return terminal_front(write_text, notice, signals)
        except ModuleNotFoundError as error:
            notice(f"the package {error.name} is not installed: the session has no history and no completion")
    signals.on_ctrl_c = "raise"  # there is no line editor that handles its keys
    return plain_front(write_text, notice)
