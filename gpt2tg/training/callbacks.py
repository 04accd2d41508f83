"""What a person sees while the model trains: a bar at a terminal, plain lines elsewhere, all on stderr."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gpt2tg.errors import RunError


class Progress(TrainerCallback):
    """Says loss, learning rate and tokens per second, and what validation found."""

    def __init__(self, tokens_per_step: int) -> None:
        self._tokens_per_step = tokens_per_step
        self._bar: tqdm | None = None
        self._mark = (0.0, 0)  # time and step of the last line

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._start = time.monotonic()
        self._first_step = state.global_step
        self._mark = (self._start, state.global_step)
        if state.is_world_process_zero and sys.stderr.isatty():
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit="step")

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
        if not logs or "loss" not in logs:
            return
        require_finite("loss", logs["loss"], state.global_step)
        if not state.is_world_process_zero:
            return
        speed = self._tokens_per_second(state.global_step)
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"loss {logs['loss']:.3f}, learning rate {logs['learning_rate']:.2g}, {speed:,.0f} tokens/s"
            )
        else:
            say(
                f"step {state.global_step}/{state.max_steps}  epoch {logs['epoch']:.2f}  loss {logs['loss']:.4f}  "
                f"learning rate {logs['learning_rate']:.3g}  {speed:,.0f} tokens/s  {self._time_left(state)} left"
            )

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **_: Any,
    ) -> None:
        require_finite("validation loss", metrics["eval_loss"], state.global_step)
        if state.is_world_process_zero:
            when = f"epoch {state.epoch:.2f}" if state.global_step else "before training"
            say(f"{when}: validation loss {metrics['eval_loss']:.4f}, perplexity {metrics['eval_perplexity']:.2f}")
        # Measuring is no training: it must not lower the speed, nor lengthen what is left before the first step.
        self._mark = (time.monotonic(), state.global_step)
        if state.global_step == self._first_step:
            self._start = self._mark[0]

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _tokens_per_second(self, step: int) -> float:
        now = time.monotonic()
        (then, before), self._mark = self._mark, (now, step)
        return (step - before) * self._tokens_per_step / max(now - then, 1e-9)

    def _time_left(self, state: TrainerState) -> str:
        done = max(state.global_step - self._first_step, 1)
        return duration((time.monotonic() - self._start) / done * (state.max_steps - state.global_step))


def require_finite(what: str, value: float, step: int) -> None:
    """End a run that has lost its way.

    Raises:
        RunError: names the step and the ways out.
    """
    if not math.isfinite(value):
        raise RunError(
            f"the {what} is {value} at step {step}: nothing was saved since the last checkpoint; "
            "lower --learning_rate, or use --bf16 instead of --fp16"
        )


def say(text: str) -> None:
    """One line on stderr that does not tear a progress bar."""
    tqdm.write(text, file=sys.stderr)


def duration(seconds: float) -> str:
    """Seconds as a person says them: 0:05, 12:30, 3:20:00."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
