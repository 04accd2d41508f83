"""Show the progress of a run on stderr: a bar at a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gpt2tg.io.processes import is_main_process
from gpt2tg.training.console import STDERR, log
from gpt2tg.training.log_history import best_step
from gpt2tg.training.stopwatch import Stopwatch

# Fits a terminal of 80 columns, even with large numbers.
BAR_FORMAT = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"

# An evaluation that takes longer than this many seconds shows a bar.
SHORT_EVALUATION = 3

Batch = TypeVar("Batch")


class Progress(TrainerCallback):
    """Prints loss, learning rate, speed, memory, time left, and the result of each evaluation."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self._stopwatch = stopwatch
        self._bar: tqdm | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero and STDERR.isatty():
            self._bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                bar_format=BAR_FORMAT,
                dynamic_ncols=True,
                file=STDERR,
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        speed, memory = f"{logs['tokens_per_second']:,.0f} tokens/s", f"{logs['memory_gb']:.2f} GB"
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {logs['loss']:.3f}, {speed}, {memory}")
            return
        log.info(
            f"step {state.global_step}/{state.max_steps}  epoch {logs['epoch']:.2f}  loss {logs['loss']:.4f}  "
            f"learning rate {logs['learning_rate']:.3g}  {speed}  {memory}  "
            f"{self._stopwatch.time_left(state.global_step, state.max_steps)} left"
        )

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        assert metrics is not None, "LanguageTrainer.evaluate passes them"
        when = f"step {state.global_step}, epoch {state.epoch:.2f}" if state.global_step else "before training"
        best = ", the best so far" if best_step(state.log_history) == state.global_step else ""
        loss, perplexity = metrics["eval_loss"], metrics["eval_perplexity"]
        log.info(f"{when}: validation loss {loss:.4f}, perplexity {perplexity:.2f}{best}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def evaluation_bar(batches: Iterable[Batch]) -> Iterable[Batch]:
    """Yield the same batches; a long evaluation at a terminal shows a bar."""
    is_shown = is_main_process() and STDERR.isatty()
    bar: Iterable[Batch] = tqdm(
        batches,
        "evaluating",
        delay=SHORT_EVALUATION,
        leave=False,
        dynamic_ncols=True,
        disable=not is_shown,
        file=STDERR,
    )
    return bar
