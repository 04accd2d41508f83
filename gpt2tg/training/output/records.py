"""What a run writes about itself: training_log.csv line by line, run.json and README.md at each save,
loss.png at saves that are some seconds apart and at the end."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gpt2tg.checkpoint.runs import LOG_FILE, step_of_model
from gpt2tg.training.callbacks import History, best_step, measurements, say
from gpt2tg.training.output.card import model_card
from gpt2tg.training.output.directory import CARD_FILE, PLOT_FILE, RunDirectory
from gpt2tg.training.output.durable import write_whole
from gpt2tg.training.output.plots import draw_losses

# Columns of the log, and what transformers calls them.
COLUMNS = {
    "step": "step",
    "epoch": "epoch",
    "loss": "loss",
    "validation_loss": "eval_loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "tokens": "tokens",
    "tokens_per_second": "tokens_per_second",
    "seconds": "seconds",
    "memory_gb": "memory_gb",
}


# Drawing takes about half a second, which is longer than many steps of a small run.
SECONDS_BETWEEN_PICTURES = 10.0


class Records(TrainerCallback):
    """Keeps the records of a run, on its main process."""

    def __init__(self, directory: RunDirectory, title: str) -> None:
        self._directory = directory
        self._title = title
        self._next_picture = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The log goes on where the checkpoint stands: what a killed run wrote beyond it will be written again."""
        if state.is_world_process_zero:
            write_whole(self._log, "")
            self._append(state.log_history, header=True)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self._append(state.log_history[-1:])

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self._write_figures(state)
            if time.monotonic() >= self._next_picture:
                self._draw(state.log_history)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self._draw(state.log_history)

    def write(self, state: TrainerState) -> None:
        """Bring run.json, the card and the picture up to date."""
        self._write_figures(state)
        self._draw(state.log_history)

    def _write_figures(self, state: TrainerState) -> None:
        self._directory.update(figures=_figures(state.log_history, state.global_step, state.max_steps))
        held = step_of_model(self._directory.path)
        write_whole(self._directory.path / CARD_FILE, model_card(self._directory.record, held))

    def _draw(self, history: History) -> None:
        path = self._directory.path / PLOT_FILE
        _unless_it_fails("loss.png was not drawn", lambda: draw_losses(history, path, self._title))
        self._next_picture = time.monotonic() + SECONDS_BETWEEN_PICTURES

    @property
    def _log(self) -> Path:
        return self._directory.path / LOG_FILE

    def _append(self, entries: History, header: bool = False) -> None:
        with self._log.open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            if header:
                writer.writerow(COLUMNS)
            for entry in entries:
                if "loss" in entry or "eval_loss" in entry:
                    writer.writerow([entry.get(name, "") for name in COLUMNS.values()])


def _figures(history: History, step: int, last_step: int) -> dict[str, Any]:
    """The numbers of the run so far. Losses are in nats per token."""
    lines = [entry for entry in history if "loss" in entry]
    last = lines[-1] if lines else {}
    measured = {at: loss for loss, at in measurements(history)}
    best = best_step(history)
    return {
        "step": step,
        "of_steps": last_step,
        "epoch": last.get("epoch"),
        "training_loss": last.get("loss"),
        "validation_loss_before": next((e["eval_loss"] for e in history if "eval_loss" in e and not e["step"]), None),
        "validation_loss": measured[max(measured)] if measured else None,
        "best_validation_loss": None if best is None else measured[best],
        "best_step": best,
        "tokens": last.get("tokens"),
        "seconds": last.get("seconds"),
        "memory_gb": max((entry["memory_gb"] for entry in lines if "memory_gb" in entry), default=None),
    }


def _unless_it_fails(what: str, action: Callable[[], None]) -> None:
    """A picture is worth no night's run: say what failed and go on. A full disk is told by what is saved next."""
    try:
        action()
    except Exception as error:
        say(f"{what}: {type(error).__name__}: {error}")
