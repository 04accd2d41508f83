"""The text of a session: turn by turn what was typed and what was written to it, and the way back."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2tg.options import DecodingOptions


@dataclass(frozen=True)
class Turn:
    """One step of a text."""

    typed: str
    """What the person added."""
    written: str = ""
    """What the model wrote to it."""
    options: DecodingOptions | None = None
    """What writes it again after the same text: settings, seed, and in `replay` the draw. None where nothing was."""
    choice: int = 0
    """Which of the texts that were written side by side it is."""
    finish_reason: str | None = None
    """As in `Sample`, or `interrupted`."""
    ids: tuple[int, ...] = ()
    """The tokens that were written, as in `Sample`; none where the text was interrupted."""


class GrowingText:
    """The text so far. Every change can be taken back."""

    def __init__(self) -> None:
        self.turns: tuple[Turn, ...] = ()
        self._past: list[tuple[Turn, ...]] = []

    def __str__(self) -> str:
        return "".join(turn.typed + turn.written for turn in self.turns)

    @property
    def before_last(self) -> str:
        """The text without its last turn."""
        return "".join(turn.typed + turn.written for turn in self.turns[:-1])

    def change(self, turns: tuple[Turn, ...]) -> None:
        """Put other turns in the place of those there are. The same ones are no change."""
        if turns == self.turns:
            return
        self._past.append(self.turns)
        self.turns = turns

    def undo(self) -> bool:
        """Take back the last change; False where there is none."""
        if not self._past:
            return False
        self.turns = self._past.pop()
        return True
