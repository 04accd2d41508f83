"""The text of a session: its turns, and the history to undo changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpt2tg.options import DecodingOptions


@dataclass(frozen=True)
class Turn:
    """What the user typed, and what the model added to it."""

    typed: str
    written: str = ""
    """The completion."""
    options: DecodingOptions | None = None
    """The options that generate `written` again, with their seed or `replay`; None if nothing was generated."""
    choice: int = 0
    """Index of `written` among the texts, if several were generated."""
    finish_reason: str | None = None
    """As in `Sample`, or `interrupted`."""
    ids: tuple[int, ...] = ()
    """The generated tokens, as in `Sample`; empty if generation was interrupted."""

    def __str__(self) -> str:
        return self.typed + self.written


class GrowingText:
    """The text so far. Every change can be undone."""

    def __init__(self) -> None:
        self.turns: tuple[Turn, ...] = ()
        self._past: list[tuple[Turn, ...]] = []

    def __str__(self) -> str:
        return "".join(map(str, self.turns))

    @property
    def before_last(self) -> str:
        """The text without its last turn."""
        return "".join(map(str, self.turns[:-1]))

    def change(self, turns: tuple[Turn, ...]) -> None:
        """Replace the turns. Equal turns are not a change to undo."""
        if turns == self.turns:
            return
        self._past.append(self.turns)
        self.turns = turns

    def undo(self) -> bool:
        """Undo the last change; return False if there is none."""
        if not self._past:
            return False
        self.turns = self._past.pop()
        return True


def count_turns(turns: Sequence[Turn]) -> str:
    """Return the number of turns in words, such as `2 turns`."""
    return f"{len(turns)} turn{'' if len(turns) == 1 else 's'}"
