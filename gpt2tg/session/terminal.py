"""The front of a session at a terminal: a line editor with history, multi-line input and completion."""

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
from gpt2tg.session.front import Front, columns, stdout_style
from gpt2tg.session.settings import is_file_option

# Lines reserved below the edited line for the completion menu.
MENU_LINES = 6


def terminal_front(write: Callable[[str], None], say: Callable[[str], None], signals: SessionSignals) -> Front:
    """Return a front with a line editor: Enter submits the input, Alt-Enter inserts a line break."""
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
        """From the first prompt on, the editor handles Ctrl-C."""
        signals.on_ctrl_c = "ignore"

    asking.app.after_render += is_shown

    def read() -> str:
        try:
            return asking.prompt("> ")
        except KeyboardInterrupt:
            if signals.on_ctrl_c == "end":  # it came before the first prompt
                signals.end(signal.SIGINT)
            raise

    return Front(
        read=read,
        write=write,
        say=say,
        edit=lambda text: editing.prompt("| ", default=text),
        style=stdout_style(),
        width=columns,
        wraps=True,
        unechoed=signals.answering,
        at_terminal=True,
    )


class CommandCompleter(Completer):
    """Completes commands, names and values of settings, and file names."""

    def __init__(self) -> None:
        self._files = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Return the completions at the cursor; prompt_toolkit calls this."""
        line = document.text_before_cursor
        command, space, path = line.partition(" ")
        if space and command in ("/save", "/load"):
            yield from self._files.get_completions(Document(path), complete_event)
            return
        name, _, path = line[line.rfind(" ") + 1 :].partition("=")
        if command == "/compare" and path and is_file_option(name):
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
            buffer.complete_state = None  # incomplete input: Enter accepts the completion, and does not submit
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _history(say: Callable[[str], None]) -> History:
    """Return the history of this and earlier sessions, from a file that only its owner can read."""
    path = history_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
        return FileHistory(str(path))
    except OSError as error:
        say(f"The history of this session cannot be saved: {path}: {error.strerror}")
        return InMemoryHistory()


def history_file() -> Path:
    """Return the file with the lines typed in all sessions."""
    return user_state_path("gpt2tg", appauthor=False) / "history"
