"""Search for good settings: `--try learning_rate=1e-5,5e-5 epochs=2,3` trains once with each combination.

Each trial is an ordinary run in a folder of its own and can be resumed, so the search itself only stores how far it
has come. (The search of transformers' Trainer keeps one dataset for all trials, and cannot resume a trial.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gpt2tg import __version__
from gpt2tg.checkpoint.runs import saved_checkpoints
from gpt2tg.errors import Interrupted, RunError, UserError
from gpt2tg.io.json_files import read_object
from gpt2tg.io.tables import aligned
from gpt2tg.options import NEWEST, DeviceOptions, ModelNameOptions, TrainingOptions
from gpt2tg.training.checks import check_processes
from gpt2tg.training.console import log, print_result
from gpt2tg.training.failures import NotFinite, explain_disk_errors
from gpt2tg.training.finetune import finetune
from gpt2tg.training.interruption import Interruption
from gpt2tg.training.outcome import Outcome
from gpt2tg.training.output.durable import write_text_file
from gpt2tg.training.output.layout import RUN_FILE, TRIES_DIRECTORY, TRIES_PLOT, TRIES_TABLE, write_run
from gpt2tg.training.output.plots import LossCurve, draw_tries
from gpt2tg.training.output.reservation import Reservation
from gpt2tg.training.output.run_directory import publish_from
from gpt2tg.training.pruning import Pruner, PruningCallback
from gpt2tg.training.schedules import check_schedule
from gpt2tg.training.trials import Trial, as_csv, best_first, read_evaluations, table


def search(
    options: TrainingOptions, model_name: str = ModelNameOptions.model_name, device: str = DeviceOptions.device
) -> Outcome | None:
    """Train with each combination of settings that `try_` names, and put the best model into the output directory.

    The table of results is printed on stdout.

    Returns:
        The outcome of the best run; None after a `dry_run`, which prints the plan of each.

    Raises:
        UserError: as `finetune`.
        RunError: as `finetune`. A loss that is not finite ends only its run, unless all runs end so.
        Interrupted: a signal ended the search; `resume` continues it.
    """
    check_processes(options)
    if options.dry_run:
        for settings, trial_options in zip(options.tried_settings(), options.tries(), strict=True):
            print_result(f"{Trial(settings).name}:")
            finetune(trial_options, model_name, device)
        return None
    for trial_options in options.tries():  # before the first of them trains, perhaps for hours
        check_schedule(trial_options)
    search = Search(options, model_name, device)
    directory = search.directory
    with Reservation(directory, options.resume is not None, options.overwrite) as reservation:
        if options.resume:
            search.load()
        with Interruption() as interruption, explain_disk_errors(directory):
            reservation.open()
            search.record()
            interruption.is_saved = True
            search.run_trials()
            ranking = search.publish_best()
    print_result("\n".join(aligned(table(ranking))))
    return replace(search.outcomes[ranking[0].folder], output_dir=directory)


class Search:
    """A search, its trials, and the outcomes of those that were finished now or before."""

    def __init__(self, options: TrainingOptions, model_name: str, device: str) -> None:
        self.directory = Path(options.output_dir)
        self.trials = list(map(Trial, options.tried_settings()))
        self.outcomes: dict[str, Outcome] = {}  # by the folder of the trial
        self._options = options
        self._model_name, self._device = model_name, device

    def load(self) -> None:
        """Take over the results of an earlier search in this directory.

        Raises:
            UserError: there was no search.
        """
        try:
            known = list(map(Trial.from_record, read_object(self.directory / RUN_FILE)["tries"]))
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"found no search in {self.directory}: start without --resume, or in another --output_dir", "resume"
            ) from None
        for number, trial in enumerate(self.trials):
            earlier = next((one for one in known if one.settings == trial.settings), trial)
            self.trials[number] = replace(earlier, settings=trial.settings)  # run.json sorts them by name

    def record(self, run: dict[str, Any] | None = None) -> None:
        """Write to run.json how far the search has come.

        Args:
            run: the run.json of the best run, whose entries are kept.
        """
        entries = {"versions": {"gpt2tg": __version__}, **(run or {}), "tries": list(map(asdict, self.trials))}
        write_run(self.directory, {**entries, "files": [TRIES_TABLE, TRIES_PLOT]})

    def run_trials(self) -> None:
        """Train all trials that are not finished, one after the other."""
        pruner = Pruner()
        for number, (options, trial) in enumerate(zip(self._options.tries(), self.trials, strict=True), start=1):
            earlier_state = f", {trial.state} before" if trial.state else ""
            log.info(f"try {number} of {len(self.trials)}: {trial.name}{earlier_state}")
            if trial.state in ("pruned", "diverged"):
                continue
            self._run_trial(trial, options, pruner.callback(options))
            if trial.state == "pruned":
                log.info("pruned: earlier runs were better at this point")
            elif trial.state == "finished":  # read from its log: a run that had finished before reports no evaluation
                pruner.add_finished(options, trial.validation_loss, read_evaluations(self._folder(trial)))
            self.record()

    def _run_trial(self, trial: Trial, options: TrainingOptions, pruning: PruningCallback) -> None:
        try:
            outcome = self._train(self._folder(trial), options, [pruning])
        except NotFinite as error:
            trial.state = "diverged"
            log.warning(str(error))
        except Interrupted as interrupted:
            interrupted.is_saved = True  # the search can be resumed, even if this trial has no checkpoint
            raise
        else:
            self.outcomes[trial.folder] = outcome
            trial.set_result(outcome, pruning.is_pruned)

    def _train(
        self,
        folder: Path,
        options: TrainingOptions,
        callbacks: Sequence[PruningCallback],
        test_file: tuple[str, ...] = (),
    ) -> Outcome:
        """Train or resume a trial. For a finished one, this only checks that it was the same run.

        Args:
            test_file: measured if given: only the best trial is.
        """
        has_checkpoint = folder.is_dir() and bool(saved_checkpoints(folder))
        options = replace(
            options,
            test_file=test_file,
            output_dir=str(folder),
            resume=NEWEST if has_checkpoint else None,
            resume_anyway=options.resume_anyway and has_checkpoint,
            overwrite=(folder / RUN_FILE).is_file() and not has_checkpoint,
        )
        outcome = finetune(options, self._model_name, self._device, callbacks)
        assert outcome is not None, "only a dry run has no outcome"
        return outcome

    def publish_best(self) -> list[Trial]:
        """Put the best model, the table and the plot into the directory.

        Returns:
            The trials, the best first.

        Raises:
            RunError: no trial was finished.
        """
        ranking = best_first(self.trials)
        best, folder = ranking[0], self._folder(ranking[0])
        if best.state != "finished":
            raise RunError(f"all {len(ranking)} runs ended with a loss that is not finite: try lower learning rates")
        if self._options.test_file:
            number = self.trials.index(best)
            self._train(folder, self._options.tries()[number], (), self._options.test_file)
        publish_from(folder, self.directory)
        self.record(read_object(folder / RUN_FILE))
        curves = [
            LossCurve(trial.name, trial.state == "finished", read_evaluations(self._folder(trial))) for trial in ranking
        ]
        draw_tries(curves, self.directory / TRIES_PLOT)
        write_text_file(self.directory / TRIES_TABLE, as_csv(table(ranking)))
        trials_directory = self.directory / TRIES_DIRECTORY
        log.info(f"the best is {best.name}: its model is in {self.directory}, all runs are in {trials_directory}")
        return ranking

    def _folder(self, trial: Trial) -> Path:
        return self.directory / TRIES_DIRECTORY / trial.folder
