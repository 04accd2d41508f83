"""Where a session reads and writes, and how it looks there."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from gpt2tg.session.wrapping import WordWrap

RESET = "\x1b[0m"

# Control characters by which a text could move the cursor, rename the window and the like. Line break and tab stay.
ORDERS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}

# What is typed is bold, errors are red. Both can be read on a light and on a dark ground.
BOLD, RED = "\x1b[1m", "\x1b[31m"

# The ground on which a token stands that is less probable than the bound, the least probable ones first. The colour
# of the letters is set too, so that they can be read whatever the terminal's own colours are.
HEAT = ((0.01, "\x1b[97;41m"), (0.05, "\x1b[30;43m"), (0.2, "\x1b[30;42m"))


@dataclass(frozen=True)
class Style:
    """How texts look on stdout."""

    has_colours: bool = False
    hides_orders: bool = False
    """Whether what a terminal would take for an order is replaced."""

    def shown(self, text: str) -> str:
        """A text of the model or of a file."""
        return text.translate(ORDERS) if self.hides_orders else text

    def typed(self, text: str) -> str:
        """What the person has typed."""
        return self._paint(BOLD, text)

    def error(self, text: str) -> str:
        """The word that announces an error."""
        return self._paint(RED, text)

    def heat(self, text: str, probability: float) -> str:
        """A token on a ground that shows how improbable it is; without colours, the least probable in brackets."""
        colour = next((colour for bound, colour in HEAT if probability < bound), None)
        if colour is None:
            return text
        breaks, shown = "\n" * text.count("\n"), text.lstrip(" ").replace("\n", "\\n")
        spaces = text[: len(text) - len(text.lstrip(" "))]
        if self.has_colours and shown:
            return f"{spaces}{self._paint(colour, shown)}{breaks}"
        if self.has_colours:
            return self._paint(colour, spaces)
        return f"{spaces}[{shown}]{breaks}" if probability < HEAT[0][0] else text

    def legend(self) -> str:
        """What the colours of `heat` mean."""
        if not self.has_colours:
            return f"in brackets: tokens of a probability below {HEAT[0][0]:.0%}"
        return "probability below " + "  ".join(self._paint(colour, f" {bound:.0%} ") for bound, colour in HEAT)

    def _paint(self, code: str, text: str) -> str:
        return f"{code}{text}{RESET}" if self.has_colours and text else text


@dataclass(frozen=True)
class Front:
    """The ends of a session."""

    read: Callable[[], str]
    """The next line; raises EOFError when there is none, and KeyboardInterrupt on Ctrl-C."""
    write: Callable[[str], None]
    """Takes texts, piece by piece."""
    say: Callable[[str], None]
    """Takes all other talk, line by line."""
    edit: Callable[[str], str] | None = None
    """Lets the person change a text; None where that cannot be."""
    style: Style = Style()
    width: Callable[[], int] = lambda: 80
    """Columns."""
    at_terminal: bool = False
    """Whether a person sits there: Ctrl-C then stops an answer, and the session goes on."""
    unechoed: Callable[[], AbstractContextManager[None]] = nullcontext
    """While texts are written: keys typed then do not show amid them."""
    wraps: bool = False
    """Whether lines of a text are broken between words: at a terminal."""

    @contextmanager
    def text(self) -> Iterator[Callable[[str], None]]:
        """Give what writes one text piece by piece, from the beginning of a line; its end is written at the end."""
        words = WordWrap(self.write, self.width if self.wraps else None)
        try:
            yield words
        finally:
            words.close()


def plain_front(write: Callable[[str], None], say: Callable[[str], None]) -> Front:
    """Lines of stdin. A person at a terminal without abilities is asked for them on stderr."""
    at_terminal = sys.stdin.isatty()
    mark = "\ufeff"  # some programs put one before what they pipe

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
    return Front(read, write, say, style=style_of_stdout(), width=columns, wraps=wraps, at_terminal=at_terminal)


def style_of_stdout() -> Style:
    """Colours where stdout is a terminal that shows them, and they are not refused (https://no-color.org)."""
    is_terminal = sys.stdout.isatty()
    refused = os.environ.get("TERM") == "dumb" or os.environ.get("NO_COLOR")
    return Style(has_colours=is_terminal and not refused, hides_orders=is_terminal)


def is_able_terminal() -> bool:
    """Whether a line can be edited here."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def columns() -> int:
    """The width of the terminal."""
    return shutil.get_terminal_size().columns
