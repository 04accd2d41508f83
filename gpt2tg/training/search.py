"""The search for good settings: `--try learning_rate=1e-5,5e-5 epochs=2,3` trains once with each combination.

Every run is an ordinary one, in a folder of its own that can be resumed, so that nothing needs to be kept but how far
the search has come. Optuna decides which are hopeless: its median pruner ends a run whose best validation loss so far
is above the median of what the finished runs of the same schedule had measured after as many rounds over the text. The
search of transformers' Trainer keeps one dataset and forgets a run that was interrupted; it would not serve.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gpt2tg import __version__
from gpt2tg.checkpoint.runs import LOG_FILE, saved_checkpoints
from gpt2tg.errors import Interrupted, RunError, UserError
from gpt2tg.io.json_files import read_object
from gpt2tg.options import NEWEST, DeviceOptions, ModelNameOptions, TrainingOptions
from gpt2tg.training.callbacks import duration, say, show
from gpt2tg.training.checks import check_processes
from gpt2tg.training.evaluate import perplexity
from gpt2tg.training.finetune import Outcome, finetune, told_when_full
from gpt2tg.training.interruption import Interruption
from gpt2tg.training.output.directory import (
    RUN_FILE,
    TRIES_DIRECTORY,
    TRIES_PLOT,
    TRIES_TABLE,
    hold_model_of,
    write_run,
)
from gpt2tg.training.output.durable import write_whole
from gpt2tg.training.output.plots import draw_tries
from gpt2tg.training.output.reservation import Reservation
from gpt2tg.training.trainer import NotFinite

# As many runs go to their end before any is compared with them.
NEVER_PRUNED = 2

# What the table says of a run beside its settings.
COLUMNS = ("validation_loss", "perplexity", "at_step", "of_steps", "time", "state")

FINISHED, PRUNED, DIVERGED = "finished", "pruned", "diverged"


@dataclass
class Try:
    """One combination of settings, and what came of it. Losses are means per token in nats."""

    settings: dict[str, Any]
    state: str | None = None  # None while there is something left to train
    validation_loss: float | None = None  # of the model that its folder holds
    step: int | None = None  # of that model
    steps: int | None = None
    seconds: float | None = None

    @property
    def name(self) -> str:
        """Its settings as they were written."""
        return ", ".join(f"{name}={value}" for name, value in self.settings.items())

    @property
    def folder(self) -> str:
        """A name for a folder, the same whatever else is tried."""
        return re.sub(r"[^\w.=+-]+", ",", self.name)

    @classmethod
    def read(cls, entry: dict[str, Any]) -> Try:
        """Return a try from its entry in run.json.

        Raises:
            TypeError, ValueError: it is none.
        """
        found = cls(**entry)
        if not isinstance(found.settings, dict) or found.state not in (None, FINISHED, PRUNED, DIVERGED):
            raise ValueError(f"{entry} is no try")
        for number in (found.validation_loss, found.step, found.steps, found.seconds):
            if number is not None and not math.isfinite(number):
                raise ValueError(f"{entry} is no try")
        return found

    def note(self, outcome: Outcome, is_pruned: bool) -> None:
        """Keep what a run achieved."""
        self.state = PRUNED if is_pruned else FINISHED
        self.validation_loss, self.step = outcome.loss_after, outcome.held_step
        self.steps, self.seconds = outcome.steps, outcome.seconds


class Judge(TrainerCallback):
    """Tells Optuna of each measurement, and ends the run when it is hopeless."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial = trial
        self.is_pruned = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A run that is resumed was measured before."""
        for entry in state.log_history:
            self._report(entry)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._report(state.log_history[-1])
        if 0 < state.global_step < state.max_steps and self._trial.should_prune():
            self.is_pruned = control.should_training_stop = True

    def _report(self, entry: dict[str, float]) -> None:
        if entry["step"] and "eval_loss" in entry:
            self._trial.report(entry["eval_loss"], _moment(entry["epoch"]))


def _moment(epoch: float) -> int:
    """Optuna counts in whole numbers: thousandths of a round."""
    return round(1000 * epoch)


def search(
    options: TrainingOptions, model_name: str = ModelNameOptions.model_name, device: str = DeviceOptions.device
) -> Outcome | None:
    """Train with each combination of settings that `try_` names; the output directory then holds the best model.

    What is found is printed on stdout as a table.

    Returns:
        What the best run achieved; None after a `dry_run`, which prints the plan of each.

    Raises:
        UserError: as `finetune`.
        RunError: as `finetune`; a loss that is not finite ends one run alone, unless all end so.
        Interrupted: a signal ended the search; `--resume` goes on with it.
    """
    check_processes(options)
    top = Path(options.output_dir)
    tries = {attempt.folder: attempt for attempt in map(Try, options.tried_settings())}
    if options.dry_run:
        for attempt, one in zip(tries.values(), options.tries(), strict=True):
            show(f"{attempt.name}:")
            finetune(one, model_name, device)
        return None
    with Reservation(top, options.resume is not None, options.overwrite) as place:
        if options.resume:
            earlier = _earlier(top)
            for folder, attempt in tries.items():  # the record has the settings of each in another order
                known = [replace(one, settings=attempt.settings) for one in earlier if one.settings == attempt.settings]
                tries[folder] = known[0] if known else attempt
        with Interruption() as interruption, told_when_full(top):
            place.open()
            _record(top, tries)
            interruption.is_saved = True
            outcomes = _try_all(options, model_name, device, tries)
            outcome, rows = _conclude(top, tries, outcomes)
    show(_aligned(rows))
    return outcome


def _earlier(top: Path) -> list[Try]:
    """How far the search in a directory has come."""
    try:
        return list(map(Try.read, read_object(top / RUN_FILE)["tries"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"found no search in {top}: start without --resume, or in another --output_dir", "resume"
        ) from None


def _try_all(options: TrainingOptions, model_name: str, device: str, tries: dict[str, Try]) -> dict[str, Outcome]:
    """Train all that is not trained yet, one after the other; what was achieved by folder."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    top = Path(options.output_dir)
    studies: dict[Hashable, optuna.Study] = defaultdict(_new_study)
    outcomes = {}
    for number, (one, (folder, attempt)) in enumerate(zip(options.tries(), tries.items(), strict=True), start=1):
        say(f"try {number} of {len(tries)}: {attempt.name}" + (f", {attempt.state} before" if attempt.state else ""))
        if attempt.state in (PRUNED, DIVERGED):
            continue
        path = top / TRIES_DIRECTORY / folder
        study = studies[_schedule(one)]
        judge = Judge(study.ask())
        try:
            outcomes[folder] = _run(one, path, model_name, device, judge)
            attempt.note(outcomes[folder], judge.is_pruned)
        except NotFinite as error:
            attempt.state = DIVERGED
            say(str(error))
        except Interrupted as stop:
            stop.is_saved = True  # with what was tried before it
            raise
        if attempt.state == PRUNED:
            say("pruned: runs before it were better by then")
        elif attempt.state == FINISHED:  # by its log: of one that was finished before, nothing was reported
            losses = {_moment(epoch): loss for epoch, loss in measured(path) if epoch}
            study.add_trial(optuna.create_trial(value=attempt.validation_loss, intermediate_values=losses))
        _record(top, tries)
    return outcomes


def _new_study() -> optuna.Study:
    pruner = optuna.pruners.MedianPruner(n_startup_trials=NEVER_PRUNED, n_min_trials=NEVER_PRUNED)
    return optuna.create_study(pruner=pruner)


def _schedule(one: TrainingOptions) -> Hashable:
    """What runs must have in common for their losses to be compared on the way.

    After the first of four rounds the learning rate is still high, after the only one of another run it has fallen: the
    loss of the latter is lower then, whichever ends lower. Blocks of another size give other losses altogether.
    """
    step = (
        one.batch_size * one.gradient_accumulation_steps
    )  # the blocks of one: max_steps of larger steps are more rounds
    rises = 0 if one.lr_scheduler_type == "constant" else one.warmup_steps * step
    length: float | None = one.max_steps * step if one.max_steps else one.epochs
    if one.lr_scheduler_type.startswith("constant"):
        length = None  # it never falls: the longer run begins as the shorter one
    return one.block_size, one.lr_scheduler_type, rises, bool(one.max_steps), length


def _run(one: TrainingOptions, path: Path, model_name: str, device: str, judge: Judge) -> Outcome:
    """Train, or go on. Where all is done already, it is only checked that it was the same run."""
    is_begun = path.is_dir() and bool(saved_checkpoints(path))
    options = replace(
        one,
        output_dir=str(path),
        resume=NEWEST if is_begun else None,
        resume_anyway=one.resume_anyway and is_begun,
        overwrite=(path / RUN_FILE).is_file() and not is_begun,
    )
    outcome = finetune(options, model_name, device, [judge])
    assert outcome is not None, "only a dry run has none"
    return outcome


def measured(path: Path) -> list[tuple[float, float]]:
    """Rounds over the text, and the validation loss after them, from the log of a run."""
    try:
        with (path / LOG_FILE).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return [(float(row["epoch"]), float(row["validation_loss"])) for row in rows if row["validation_loss"]]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):  # none, or none of ours
        return []


def _record(top: Path, tries: dict[str, Try], run: dict[str, Any] | None = None) -> None:
    """Keep how far the search has come, in the file by which a directory is known as one of ours."""
    content = {"versions": {"gpt2tg": __version__}, **(run or {}), "tries": [asdict(one) for one in tries.values()]}
    write_run(top, {**content, "files": [TRIES_TABLE, TRIES_PLOT]})


def _conclude(top: Path, tries: dict[str, Try], outcomes: dict[str, Outcome]) -> tuple[Outcome, list[list[str]]]:
    """Let the directory hold the model of the best run; returns what it achieved, and the table of all."""
    ranking = sorted(tries, key=lambda folder: _rank(tries[folder]))
    best = ranking[0]
    if tries[best].state != FINISHED:
        raise RunError(f"each of the {len(tries)} runs ended with a loss that is no finite number: try lower rates")
    path = top / TRIES_DIRECTORY / best
    hold_model_of(top, path)
    _record(top, tries, read_object(path / RUN_FILE))
    curves = [
        (tries[folder].name, tries[folder].state == FINISHED, measured(top / TRIES_DIRECTORY / folder))
        for folder in ranking
    ]
    draw_tries(curves, top / TRIES_PLOT)
    rows = [[*tries[best].settings, *COLUMNS], *(_row(tries[folder]) for folder in ranking)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_whole(top / TRIES_TABLE, text.getvalue())
    say(f"the best is {tries[best].name}: its model is in {top}, all runs are in {top / TRIES_DIRECTORY}")
    return replace(outcomes[best], output_dir=top), rows


def _rank(attempt: Try) -> tuple[bool, float]:
    return attempt.state != FINISHED, math.inf if attempt.validation_loss is None else attempt.validation_loss


def _row(attempt: Try) -> list[str]:
    loss = attempt.validation_loss
    return [
        *map(str, attempt.settings.values()),
        *(("-", "-") if loss is None else (f"{loss:.4f}", f"{perplexity(loss):.2f}")),
        *("-" if count is None else str(count) for count in (attempt.step, attempt.steps)),
        "-" if attempt.seconds is None else duration(attempt.seconds),
        attempt.state or "-",
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)
