"""The loop of a session: read a line, answer it, report errors, until the user quits."""

from __future__ import annotations

import re
from collections.abc import Callable

from gpt2tg.errors import RunError, UserError
from gpt2tg.io.memory import is_out_of_memory
from gpt2tg.session.commands import Quit, find_command
from gpt2tg.session.session import Session
from gpt2tg.session.settings import FIELDS, flags_as_settings

# What users of other programs type to quit or to get help.
BARE_WORDS = {"quit": "/quit", "exit": "/quit", "q": "/quit", "help": "/help", "?": "/help"}

OUT_OF_MEMORY = "out of memory: lower num_sequences, num_beams or max_new_tokens, or begin a shorter text with /new"


def run(session: Session, first: str | None = None, is_said: bool = False) -> None:
    """Answer line by line until /quit or the end of the input.

    Args:
        first: a prompt to begin with.
        is_said: whether it is the first message of a conversation.
    """
    if first is not None:
        _report_errors(session, lambda: session.say(first) if is_said else session.begin(first))
    while _answer_next(session):
        pass


def _answer_next(session: Session) -> bool:
    """Answer the next line; return False if it was the last one."""
    try:
        answer(session, session.front.read())
    except (EOFError, Quit):
        return False
    except KeyboardInterrupt:  # Ctrl-C at the prompt discards the line
        if not session.front.at_terminal:
            raise
        session.front.say("")
    return True


def answer(session: Session, line: str) -> None:
    """Answer one line: run a command, or begin a text.

    Raises:
        Quit: the user wants to leave.
    """
    if line.strip():
        _report_errors(session, lambda: _answer(session, line))


def _report_errors(session: Session, action: Callable[[], None]) -> None:
    """Run an action; print its error, so that the session continues."""
    try:
        with session.front.unechoed():
            action()
    except KeyboardInterrupt:
        if not session.front.at_terminal:
            raise
        session.front.say("stopped")
    except (UserError, RunError) as error:
        _report(session, flags_as_settings(str(error)))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        _report(session, OUT_OF_MEMORY)


def _report(session: Session, error: str) -> None:
    session.failed_lines += 1
    session.front.say(f"{session.front.style.error('error:')} {error}")


def _answer(session: Session, line: str) -> None:
    if line.startswith("//"):  # a text that begins with a slash
        session.begin(session.read_text(line[1:]))
    elif line.lstrip().startswith("/"):
        word, _, rest = line.strip().partition(" ")
        find_command(word).action(session, rest.strip())
    elif session.front.at_terminal and (meant := _command_meant(line.strip())):
        session.front.say(f"Did you mean {meant}? To begin a text with these words: /new {line.strip()}")
    else:
        session.begin(session.read_text(line))


def _command_meant(line: str) -> str | None:
    """Return the command that the user probably meant but typed without its slash."""
    setting = re.fullmatch(r"(?:set )?([\w-]+)=\S+", line)
    if setting and setting[1].replace("-", "_") in FIELDS:
        return f"/set {line.removeprefix('set ')}"
    return BARE_WORDS.get(line.lower())
