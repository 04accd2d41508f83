"""End hopeless trials of a search early, with Optuna's median pruner.

A trial is pruned if its best validation loss so far is above the median of what the finished trials of the same
schedule had reached by the same epoch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import optuna
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gpt2tg.options import WITHOUT_LENGTH, WITHOUT_WARMUP, TrainingOptions

# This many trials run to their end before later ones are compared with them.
NEVER_PRUNED = 2


class Pruner:
    """Holds an Optuna study for each schedule."""

    def __init__(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._studies: dict[Hashable, optuna.Study] = defaultdict(_new_study)

    def callback(self, options: TrainingOptions) -> PruningCallback:
        """Return the callback that watches one trial."""
        return PruningCallback(self._studies[_schedule(options)].ask())

    def add_finished(
        self, options: TrainingOptions, loss: float | None, evaluations: Sequence[tuple[float, float]]
    ) -> None:
        """Add a finished trial, for later ones to be compared with.

        Args:
            evaluations: epoch and validation loss of each.
        """
        losses = {_optuna_step(epoch): loss for epoch, loss in evaluations if epoch}
        self._studies[_schedule(options)].add_trial(optuna.create_trial(value=loss, intermediate_values=losses))


class PruningCallback(TrainerCallback):
    """Reports each evaluation to Optuna, and stops the run if it is to be pruned."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial = trial
        self.is_pruned = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Report the evaluations before a resume."""
        for entry in state.log_history:
            self._report(entry)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._report(state.log_history[-1])
        if 0 < state.global_step < state.max_steps and self._trial.should_prune():
            self.is_pruned = control.should_training_stop = True

    def _report(self, entry: dict[str, float]) -> None:
        if entry["step"] and "eval_loss" in entry:
            self._trial.report(entry["eval_loss"], _optuna_step(entry["epoch"]))


def _optuna_step(epoch: float) -> int:
    """Return thousandths of an epoch: Optuna's steps are integers."""
    return round(1000 * epoch)


def _new_study() -> optuna.Study:
    pruner = optuna.pruners.MedianPruner(n_startup_trials=NEVER_PRUNED, n_min_trials=NEVER_PRUNED)
    return optuna.create_study(pruner=pruner)


def _schedule(options: TrainingOptions) -> Hashable:
    """Return what trials must have in common for their losses to be compared before the end.

    After the first of four epochs the learning rate is still high, and after the only epoch of a shorter run it has
    decayed. The shorter run then has the lower loss, whichever ends lower. Another block size shifts all losses.
    """
    step_blocks = options.batch_size * options.gradient_accumulation_steps  # max_steps times these are epochs
    is_share = 0 < options.warmup_steps < 1
    warmup = options.warmup_steps if is_share else options.warmup_steps * step_blocks
    if options.lr_scheduler_type in WITHOUT_WARMUP:
        warmup, is_share = 0, False
    length: float | None = options.max_steps * step_blocks if options.max_steps else options.epochs
    if options.lr_scheduler_type in WITHOUT_LENGTH and not is_share:
        length = None  # the longer run begins like the shorter one
    return options.block_size, options.lr_scheduler_type, warmup, bool(options.max_steps), length
