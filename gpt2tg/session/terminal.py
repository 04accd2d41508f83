"""The session at a terminal: a line editor with history, several lines, and completion of commands."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

from platformdirs import user_state_path
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from gpt2tg.io.signals import SessionSignals
from gpt2tg.session.completion import completions
from gpt2tg.session.front import Front, columns, style_of_stdout
from gpt2tg.session.settings import names_file

# Lines kept free below the line that is edited, for the menu of completions.
MENU_LINES = 6


def terminal_front(write: Callable[[str], None], say: Callable[[str], None], signals: SessionSignals) -> Front:
    """A line editor. Enter ends a line, Alt-Enter begins another line of the same text."""
    signals.has_line_editor = True
    keys = _keys()
    asking: PromptSession[str] = PromptSession(
        history=_history(say),
        completer=CommandCompleter(),
        complete_while_typing=Condition(lambda: asking.default_buffer.text.startswith("/")),
        reserve_space_for_menu=MENU_LINES,
        multiline=True,
        key_bindings=keys,
        prompt_continuation="  ",
    )
    editing: PromptSession[str] = PromptSession(multiline=True, key_bindings=keys, prompt_continuation="  ")

    def is_shown(_: object) -> None:
        """The session has started, and from now on the editor itself minds Ctrl-C."""
        signals.on_ctrl_c = "ignore"

    asking.app.after_render += is_shown

    def read() -> str:
        try:
            return asking.prompt("> ")
        except KeyboardInterrupt:
            if signals.on_ctrl_c == "end":  # it came before the editor was there
                signals.end(signal.SIGINT)
            raise

    return Front(
        read=read,
        write=write,
        say=say,
        edit=lambda text: editing.prompt("| ", default=text),
        style=style_of_stdout(),
        width=columns,
        wraps=True,
        unechoed=signals.answering,
        at_terminal=True,
    )


class CommandCompleter(Completer):
    """Completes commands, names and values of settings, and files."""

    def __init__(self) -> None:
        self._files = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """As prompt_toolkit asks for them."""
        line = document.text_before_cursor
        command, space, path = line.partition(" ")
        if space and command in ("/save", "/load"):
            yield from self._files.get_completions(Document(path), complete_event)
            return
        name, _, path = line[line.rfind(" ") + 1 :].partition("=")
        if command == "/compare" and path and names_file(name):
            yield from self._files.get_completions(Document(path), complete_event)
            return
        word, found = completions(line)
        for text, meaning in found.items():
            yield Completion(text, start_position=-len(word), display_meta=meaning)


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def end_line(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        chosen = buffer.complete_state and buffer.complete_state.current_completion
        if chosen and chosen.text.endswith((" ", "=")):
            buffer.complete_state = None  # more is to follow: Enter takes what was chosen from the menu
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _history(say: Callable[[str], None]) -> History:
    """What was typed in this session and the ones before, in a file that only its owner can read."""
    path = history_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
        return FileHistory(str(path))
    except OSError as error:
        say(f"What you type is not kept for the next session: {path}: {error.strerror}")
        return InMemoryHistory()


def history_file() -> Path:
    """Where the lines of all sessions are kept."""
    return user_state_path("gpt2tg", appauthor=False) / "history"
