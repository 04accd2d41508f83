"""What happens beside the steps: when to measure, save and end, and what a person sees of it.

At a terminal there is a bar, elsewhere plain lines, all on stderr.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gpt2tg.training.interruption import Agreement
from gpt2tg.training.processes import is_main_process

History = Sequence[dict[str, float]]

# Short enough for a terminal of 80 columns, with large numbers in all places.
BAR_FORMAT = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"

# Seconds for which a person waits without asking what goes on.
SHORT_MEASUREMENT = 3


class Pace(TrainerCallback):
    """Decides when to log, to measure, to save and to end, beyond what transformers decides from its arguments."""

    def __init__(self, measures: bool, eval_steps: int | None, patience: int | None, agreement: Agreement) -> None:
        self._measures = measures
        self._eval_steps = eval_steps
        self._patience = patience
        self._agreement = agreement

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # What stands in a checkpoint is what the run was started with; the flags may have changed.
        state.save_steps, state.logging_steps = int(args.save_steps), int(args.logging_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True
        if self._measures and is_due(state.global_step, state.epoch, state.max_steps, self._eval_steps):
            control.should_evaluate = True
        if self._agreement.is_interrupted_at(state.global_step):
            control.should_save = control.should_training_stop = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step and best_step(state.log_history) == state.global_step:
            control.should_save = True
        if is_out_of_patience(state.log_history, self._patience):
            control.should_log = control.should_save = control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._agreement.is_interrupted():
            control.should_training_stop = True


def is_due(step: int, epoch: float, last_step: int, eval_steps: int | None) -> bool:
    """Whether the validation loss is measured after this step: before training, after each epoch, and at the end."""
    return float(epoch).is_integer() or step >= last_step or (eval_steps is not None and step % eval_steps == 0)


def measurements(history: History) -> list[tuple[float, int]]:
    """Validation loss and step of each measurement of a model that was trained at all."""
    return [(entry["eval_loss"], int(entry["step"])) for entry in history if "eval_loss" in entry and entry["step"]]


def best_step(history: History) -> int | None:
    """The step of the lowest validation loss, the earliest of several; None where none was measured."""
    return min(measurements(history), default=(0.0, None))[1]


def held_step(state: TrainerState, keep: str) -> int:
    """The step whose model the output directory itself is to hold: with `keep` best, that of the best measurement."""
    best = best_step(state.log_history) if keep == "best" else None
    return state.global_step if best is None else best


def is_out_of_patience(history: History, patience: int | None) -> bool:
    """Whether so many measurements have followed the best one."""
    if patience is None:
        return False
    steps = [step for _, step in measurements(history)]
    best = best_step(history)
    return best is not None and len(steps) - 1 - steps.index(best) >= patience


class Stopwatch:
    """The time spent training, without that for measuring, saving and sampling; kept over a resume."""

    def __init__(self, tokens_per_step: int) -> None:
        """`tokens_per_step` is of full blocks."""
        self.tokens_per_step = tokens_per_step
        self._before = 0.0  # seconds up to the last pause
        self._since: float | None = None
        self._mark = (0.0, 0)  # seconds and tokens of the last line of the log
        self._first = (0.0, 0)  # seconds and step at the start

    def start(self, seconds: float, step: int, tokens: int) -> None:
        """Go on from so many seconds and tokens at this step."""
        self._before, self._since = seconds, time.monotonic()
        self._mark, self._first = (seconds, tokens), (seconds, step)

    @property
    def seconds(self) -> float:
        """Spent training until now."""
        return self._before + (0.0 if self._since is None else time.monotonic() - self._since)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let what happens inside count as no training."""
        self._before, self._since = self.seconds, None
        try:
            yield
        finally:
            self._since = time.monotonic()

    def tokens_per_second(self, tokens: int) -> float:
        """Since the last call, now that there are so many in all."""
        (then, before), self._mark = self._mark, (self.seconds, tokens)
        return (tokens - before) / max(self._mark[0] - then, 1e-9)

    def time_left(self, step: int, last_step: int) -> str:
        """As a person says it."""
        then, before = self._first
        return duration((self.seconds - then) / max(step - before, 1) * (last_step - step))


class Progress(TrainerCallback):
    """Says loss, learning rate, tokens per second, time left and memory, and what validation found."""

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
        say(
            f"step {state.global_step}/{state.max_steps}  epoch {logs['epoch']:.2f}  loss {logs['loss']:.4f}  "
            f"learning rate {logs['learning_rate']:.3g}  {speed}  {memory}  "
            f"{self._stopwatch.time_left(state.global_step, state.max_steps)} left"
        )

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **_: Any,
    ) -> None:
        if not state.is_world_process_zero:
            return
        when = f"step {state.global_step}, epoch {state.epoch:.2f}" if state.global_step else "before training"
        best = ", the best so far" if best_step(state.log_history) == state.global_step else ""
        say(f"{when}: validation loss {metrics['eval_loss']:.4f}, perplexity {metrics['eval_perplexity']:.2f}{best}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def measuring_bar(batches: Iterable[Any]) -> Iterable[Any]:
    """The same batches; at a terminal with a bar where they take their time."""
    is_shown = is_main_process() and STDERR.isatty()
    return tqdm(
        batches,
        "measuring",
        delay=SHORT_MEASUREMENT,
        leave=False,
        dynamic_ncols=True,
        disable=not is_shown,
        file=STDERR,
    )


def say(text: str) -> None:
    """One line on stderr that does not tear a progress bar, from the main process alone."""
    if is_main_process():
        tqdm.write(text, file=STDERR)


def show(text: str) -> None:
    """Print on stdout, from the main process alone. A reader that has gone (`| head`) ends no run."""
    if not is_main_process():
        return
    try:
        print(text, flush=True)
    except BrokenPipeError:  # Python would complain again when it closes stdout
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


class _Stderr:
    """stderr as it is at the moment, for lines and bars whose loss is no reason to end a run: a terminal may be closed,
    a pipe have lost its reader, the disk of a log be full, and a service may have no stderr at all."""

    encoding = "utf-8"

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()

    def isatty(self) -> bool:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return sys.stderr.isatty()
        return False

    def fileno(self) -> int:
        return sys.stderr.fileno()


STDERR: Any = _Stderr()


def duration(seconds: float) -> str:
    """Seconds as a person says them: 0:05, 12:30, 3:20:00."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
