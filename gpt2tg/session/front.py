"""Where a session reads and writes: a `Front` over plain streams, or over a line editor in `terminal`."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from gpt2tg.session.style import PLAIN, Style
from gpt2tg.session.wrapping import WordWrap

# Lists are laid out for at least this many columns.
MIN_LIST_WIDTH = 30


@dataclass(frozen=True)
class Front:
    """The input and output of a session."""

    read: Callable[[], str]
    """Returns the next line; raises EOFError at the end of the input, and KeyboardInterrupt on Ctrl-C."""
    write: Callable[[str], None]
    """Receives generated texts and requested output, piece by piece."""
    say: Callable[[str], None]
    """Receives all other messages, line by line."""
    edit: Callable[[str], str] | None = None
    """Lets the user edit a text, and returns it; None without a line editor."""
    style: Style = PLAIN
    width: Callable[[], int] = lambda: 80
    """Returns the columns of the terminal."""
    at_terminal: bool = False
    """Whether a user sits at a terminal: then Ctrl-C stops generation, and the session continues."""
    unechoed: Callable[[], AbstractContextManager[None]] = nullcontext
    """Hides the keys typed while a text is generated."""
    wraps: bool = False
    """Whether lines of a text are broken between words, as on a terminal."""

    @contextmanager
    def open_text(self) -> Iterator[Callable[[str], None]]:
        """Return a function that writes one text piece by piece, from the beginning of a line."""
        words = WordWrap(self.write, self.width if self.wraps else None)
        try:
            yield words
        finally:
            words.close()

    def say_list(self, entries: Mapping[str, str]) -> None:
        """Print names with their meanings, side by side if the terminal is wide enough."""
        width = max(self.width(), MIN_LIST_WIDTH)
        indent = max(map(len, entries)) + 4
        if indent > width // 2:
            indent = 6
        for name, meaning in entries.items():
            lines = textwrap.wrap(meaning, width - indent - 1)
            first = f"  {name}"
            if len(first) >= indent:
                self.say(first)
            else:
                self.say(first.ljust(indent) + lines.pop(0))
            for line in lines:
                self.say(" " * indent + line)


def plain_front(write: Callable[[str], None], say: Callable[[str], None]) -> Front:
    """Return a front that reads lines from stdin, with a prompt on stderr at a terminal without line editing."""
    at_terminal = sys.stdin.isatty()
    mark = "\ufeff"  # a byte order mark, which some programs write before what they pipe

    def read() -> str:
        nonlocal mark
        if at_terminal:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            if at_terminal:
                print(file=sys.stderr)
            raise EOFError
        line, mark = line.removeprefix(mark), ""
        return line.removesuffix("\n").removesuffix("\r")

    wraps = sys.stdout.isatty()
    return Front(read, write, say, style=stdout_style(), width=columns, wraps=wraps, at_terminal=at_terminal)


def stdout_style() -> Style:
    """Return the style for stdout: colours on a terminal that shows them, unless NO_COLOR is set (no-color.org)."""
    is_terminal = sys.stdout.isatty()
    refused = os.environ.get("TERM") == "dumb" or os.environ.get("NO_COLOR")
    return Style(has_colours=is_terminal and not refused, hides_controls=is_terminal)


def can_edit_lines() -> bool:
    """Whether stdin and stdout are a terminal with line editing."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def columns() -> int:
    """Return the width of the terminal."""
    return shutil.get_terminal_size().columns
