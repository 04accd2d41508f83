"""The trials of a search with --try: one combination of settings each, and its result."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from gpt2tg.checkpoint.runs import LOG_FILE
from gpt2tg.inspection.perplexity import perplexity
from gpt2tg.training.outcome import Outcome
from gpt2tg.training.stopwatch import format_duration

State = Literal["finished", "pruned", "diverged"]

# The columns of the table after the settings.
TRIAL_COLUMNS = ("validation_loss", "perplexity", "at_step", "of_steps", "time", "state")


@dataclass
class Trial:
    """A combination of settings and its result. run.json stores these fields."""

    settings: dict[str, Any]
    state: State | None = None  # None until it is trained
    validation_loss: float | None = None  # nats per token, of the model that its folder holds
    step: int | None = None  # of that model
    steps: int | None = None
    seconds: float | None = None

    @property
    def name(self) -> str:
        """The settings as text: learning_rate=0.001, epochs=2.0."""
        return ", ".join(f"{name}={value}" for name, value in self.settings.items())

    @property
    def folder(self) -> str:
        """The name of its folder, which does not depend on other trials."""
        return re.sub(r"[^\w.=+-]+", ",", self.name)

    @classmethod
    def from_record(cls, entry: dict[str, Any]) -> Trial:
        """Return a trial from its entry in run.json.

        Raises:
            TypeError, ValueError: the entry is not a trial.
        """
        trial = cls(**entry)
        if not isinstance(trial.settings, dict) or trial.state not in (None, *get_args(State)):
            raise ValueError(f"{entry} is not a trial")
        for number in (trial.validation_loss, trial.step, trial.steps, trial.seconds):
            if number is not None and not math.isfinite(number):
                raise ValueError(f"{entry} is not a trial")
        return trial

    def set_result(self, outcome: Outcome, is_pruned: bool) -> None:
        """Store the result of the run."""
        self.state = "pruned" if is_pruned else "finished"
        self.validation_loss, self.step = outcome.loss_after, outcome.held_step
        self.steps, self.seconds = outcome.steps, outcome.seconds

    def row(self) -> list[str]:
        """Return its row of the table."""
        loss = self.validation_loss
        return [
            *map(str, self.settings.values()),
            *(("-", "-") if loss is None else (f"{loss:.4f}", f"{perplexity(loss):.2f}")),
            *("-" if count is None else str(count) for count in (self.step, self.steps)),
            "-" if self.seconds is None else format_duration(self.seconds),
            self.state or "-",
        ]


def best_first(trials: Sequence[Trial]) -> list[Trial]:
    """Return the finished trials by validation loss, and then all others likewise."""

    def rank(trial: Trial) -> tuple[bool, float]:
        return trial.state != "finished", math.inf if trial.validation_loss is None else trial.validation_loss

    return sorted(trials, key=rank)


def table(trials: Sequence[Trial]) -> list[list[str]]:
    """Return the rows of the table, the header first."""
    return [[*trials[0].settings, *TRIAL_COLUMNS], *(trial.row() for trial in trials)]


def as_csv(rows: Sequence[Sequence[str]]) -> str:
    """Return the rows as the text of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def read_evaluations(folder: Path) -> list[tuple[float, float]]:
    """Return (epoch, validation loss) of each evaluation in the log of a run; nothing if it cannot be read."""
    try:
        with (folder / LOG_FILE).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return [(float(row["epoch"]), float(row["validation_loss"])) for row in rows if row["validation_loss"]]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return []
