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
    is_said: bool = False
    """Whether `typed` is a message of a conversation, and `written` the answer to it."""

    def __str__(self) -> str:
        return self.typed + self.written


def is_conversation(turns: Sequence[Turn]) -> bool:
    """Whether the turns are a conversation. Its first turn is a message; later turns may continue an answer."""
    return bool(turns) and turns[0].is_said


def messages_of(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """Return the messages of a conversation. A question without an answer yet is the last one."""
    messages: list[dict[str, str]] = []
    for turn in turns:
        if turn.is_said:
            messages.append({"role": "user", "content": turn.typed})
        answer = turn.written if turn.is_said else str(turn)
        if answer and messages[-1]["role"] == "assistant":
            messages[-1]["content"] += answer
        elif answer:
            messages.append({"role": "assistant", "content": answer})
    return messages


class GrowingText:
    """The text so far. Every change can be undone."""

    def __init__(self) -> None:
        self.turns: tuple[Turn, ...] = ()
        self._past: list[tuple[Turn, ...]] = []

    def __str__(self) -> str:
        if is_conversation(self.turns):
            messages = messages_of(self.turns)
            return "\n".join(f"{message['role']}: {message['content'].strip()}" for message in messages)
        return "".join(map(str, self.turns))

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
