"""Write the records of a run: training_log.csv line by line, run.json, the model card and loss.png at saves."""

from __future__ import annotations

import csv
import hashlib
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gpt2tg.checkpoint.runs import LOG_FILE, step_of_model
from gpt2tg.training.console import log
from gpt2tg.training.log_history import History, best_step, evaluations
from gpt2tg.training.output.card import model_card
from gpt2tg.training.output.durable import checksum, write_text_file
from gpt2tg.training.output.layout import CARD_DIGESTS, CARD_FILE, PLOT_FILE, is_card_edited
from gpt2tg.training.output.plots import draw_losses
from gpt2tg.training.output.run_directory import RunDirectory

# Columns of training_log.csv, and the names of their values in the log history of transformers.
LOG_COLUMNS = {
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


# Drawing takes about half a second, longer than many steps of a small run.
SECONDS_BETWEEN_PLOTS = 10.0


class Records(TrainerCallback):
    """Keeps the records of a run up to date, on its main process.

    loss.png is drawn at saves, at most every ten seconds, and at the end.
    """

    def __init__(self, directory: RunDirectory, title: str) -> None:
        """Set up the records.

        Args:
            title: the title of loss.png.
        """
        self._directory = directory
        self._title = title
        self._next_plot = 0.0
        self._is_card_kept = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Restart the log at the checkpoint: the steps after it will be logged again."""
        if state.is_world_process_zero:
            write_text_file(self._log_file, "")
            self._append(state.log_history, header=True)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self._append(state.log_history[-1:])

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self._write_figures(state)
            if time.monotonic() >= self._next_plot:
                self._draw(state.log_history)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self._draw(state.log_history)

    def write(self, state: TrainerState) -> None:
        """Update run.json, the model card and the plot."""
        self._write_figures(state)
        self._draw(state.log_history)

    def _write_figures(self, state: TrainerState) -> None:
        figures = _figures(state.log_history, state.global_step, state.max_steps)
        path = self._directory.path / CARD_FILE
        if is_card_edited(self._directory.path):
            self._directory.update(figures=figures)
            self._log_kept_card(path)
            return
        card = model_card({**self._directory.record, "figures": figures}, step_of_model(self._directory.path))
        digests = [checksum(path)] if path.is_file() else []
        digests.append(hashlib.sha256(card.encode()).hexdigest())
        self._directory.update(figures=figures, **{CARD_DIGESTS: digests})
        write_text_file(path, card)

    def _log_kept_card(self, path: Path) -> None:
        if not self._is_card_kept:
            log.info(f"{path} was edited and stays as it is: delete it to get a new one")
            self._is_card_kept = True

    def _draw(self, history: History) -> None:
        """Draw loss.png. A failure is logged and does not end the run; a full disk also fails the next save."""
        try:
            draw_losses(history, self._directory.path / PLOT_FILE, self._title)
        except Exception as error:
            log.warning(f"{PLOT_FILE} was not drawn: {type(error).__name__}: {error}")
        self._next_plot = time.monotonic() + SECONDS_BETWEEN_PLOTS

    @property
    def _log_file(self) -> Path:
        return self._directory.path / LOG_FILE

    def _append(self, entries: History, header: bool = False) -> None:
        with self._log_file.open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            if header:
                writer.writerow(LOG_COLUMNS)
            for entry in entries:
                if "loss" in entry or "eval_loss" in entry:
                    writer.writerow([entry.get(name, "") for name in LOG_COLUMNS.values()])


def _figures(history: History, step: int, last_step: int) -> dict[str, Any]:
    """Return the results of the run so far. Losses are in nats per token."""
    logged = [entry for entry in history if "loss" in entry]
    last = logged[-1] if logged else {}
    losses = {at: loss for loss, at in evaluations(history)}
    best = best_step(history)
    return {
        "step": step,
        "of_steps": last_step,
        "epoch": last.get("epoch"),
        "training_loss": last.get("loss"),
        "validation_loss_before": next((e["eval_loss"] for e in history if "eval_loss" in e and not e["step"]), None),
        "validation_loss": losses[max(losses)] if losses else None,
        "best_validation_loss": None if best is None else losses[best],
        "best_step": best,
        "tokens": last.get("tokens"),
        "seconds": last.get("seconds"),
        "memory_gb": max((entry["memory_gb"] for entry in logged if "memory_gb" in entry), default=None),
    }
