"""What a rival is asked to do, and the interface by which it does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from agreement import Ids

TOP_P = 0.9
BEAMS = 5


@dataclass(frozen=True)
class Job:
    """A generation job: `kind` is greedy, beam, top_p or steps."""

    kind: str
    prompts: Ids
    """Rows of equal length."""
    new_tokens: int
    lookup: int | None = None
    """`prompt_lookup` of gpt2tg: 0 turns it off, None is its default. The other rivals have none."""
    no_repeat_ngram: int = 0


class NotOffered(Exception):
    """The rival cannot do this job. The message is the reason, as short as a cell of a table."""


class Rival(Protocol):
    """The interface of a rival. It raises `NotOffered` for jobs that it cannot do."""

    def write(self, job: Job) -> Ids:
        """Return the new ids of each row; for beam search, those of the best beam."""
        ...

    def steps(self, job: Job) -> list[float]:
        """Return the seconds of each decode step: each adds one token to every row."""
        ...
