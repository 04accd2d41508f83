"""Decide after each step whether to log, evaluate, save or stop, beyond what transformers decides by its arguments."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gpt2tg.options import TrainingOptions
from gpt2tg.training.interruption import SignalConsensus
from gpt2tg.training.log_history import best_step, is_evaluation_due, is_out_of_patience


class FlowControl(TrainerCallback):
    """Evaluates on schedule, saves each new best model, and stops on a signal or when patience runs out."""

    def __init__(self, evaluates: bool, options: TrainingOptions, signals: SignalConsensus) -> None:
        """
        Args:
            evaluates: whether there is held-out text.
        """
        self._evaluates = evaluates
        self._options = options
        self._signals = signals
        self._last_save = 0.0  # in seconds of the signals' clock

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Use the intervals of this run: transformers would take those stored in the checkpoint."""
        state.save_steps, state.logging_steps = int(args.save_steps), int(args.logging_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True
        eval_steps = self._options.eval_steps
        if self._evaluates and is_evaluation_due(state.global_step, state.epoch, state.max_steps, eval_steps):
            control.should_evaluate = True
        if self._signals.is_interrupted_at(state.global_step):
            control.should_save = control.should_training_stop = True
        minutes = self._options.save_minutes
        if minutes and self._signals.seconds - self._last_save >= 60 * minutes:
            control.should_save = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step and best_step(state.log_history) == state.global_step:
            control.should_save = True
        if is_out_of_patience(state.log_history, self._options.early_stopping_patience):
            control.should_log = control.should_save = control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._last_save = self._signals.seconds
        if self._signals.is_interrupted():
            control.should_training_stop = True
