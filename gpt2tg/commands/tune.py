"""Tune: search the settings whose texts are nearest to a human text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2tg.checkpoint.checkpoint import Checkpoint
from gpt2tg.checkpoint.file_names import GENERATION_CONFIG
from gpt2tg.checkpoint.tuned_settings import as_flags, tunable_settings, write_tuned_settings
from gpt2tg.commands.flags import Flags, notice_unused
from gpt2tg.commands.loading import Loading, ModelChoice, start_loading
from gpt2tg.commands.memory import advise_on_memory
from gpt2tg.errors import UserError
from gpt2tg.io.outputs import check_file
from gpt2tg.io.processes import require_single_process
from gpt2tg.io.streams import notice, write_out
from gpt2tg.options import (
    MOST_TUNING_PROMPTS,
    NOT_FOR_TUNING,
    SEARCHED_SETTINGS,
    TUNING_BATCH_SIZE,
    TUNING_NEW_TOKENS,
    CompareOptions,
    DecodingOptions,
    PromptOptions,
    TuneOptions,
)

if TYPE_CHECKING:  # imports torch
    from gpt2tg.generation.generator import Generator
    from gpt2tg.tuning.search import Tuning

UNUSED = (*NOT_FOR_TUNING, "compare", "strategies", "train_file", "output", "prompt", "prompts_file")


@dataclass(frozen=True)
class TuneCommand:
    """Which human text to tune settings for, and for how long."""

    reference: str
    """The file with the human text."""
    compare: CompareOptions
    tune: TuneOptions
    base: DecodingOptions
    """The settings that are not searched."""
    text_column: str | None
    batch_size: int
    given: frozenset[str]

    @classmethod
    def from_flags(cls, flags: Flags) -> TuneCommand:
        """Build the command.

        Raises:
            UserError: `--reference` is missing, a value is out of range, or flags contradict each other.
        """
        compare = flags.pick(CompareOptions)
        if compare.reference is None:
            raise UserError("is required: give human text that the model has not learned from", "reference")
        length = {} if "max_length" in flags.names else {"max_new_tokens": TUNING_NEW_TOKENS}
        base = flags.decoding(without=(*SEARCHED_SETTINGS, *NOT_FOR_TUNING), **length)
        prompts = flags.pick(PromptOptions, batch_size=TUNING_BATCH_SIZE)
        tune = flags.pick(TuneOptions)
        return cls(compare.reference, compare, tune, base, prompts.text_column, prompts.batch_size, flags.names)


@advise_on_memory("lower --batch_size or --max_length, or use --device cpu")
def tune(model: ModelChoice, command: TuneCommand) -> None:
    """Search settings, print the outcome, and save it in the checkpoint if `--apply` asks for it.

    Raises:
        UserError: a flag, a file or the model cannot be used; named before the search.
        RunError: the model failed, or a file cannot be written.
    """
    require_single_process("is for", "tune")
    why = "--tune searches settings for --reference, one text to each prompt"
    notice_unused(command.given, UNUSED, why)
    notice_unused(command.given, SEARCHED_SETTINGS, "--tune searches it")
    examples = _read_reference(command)
    model.check_device()

    from gpt2tg.comparison import export, report
    from gpt2tg.tuning.page import tuning_page

    page = export.file_to_write(command.compare.report, report.FORMATS, "report", command.compare.overwrite, notice)
    loading = start_loading(model)
    if command.tune.apply:
        _check_can_apply(loading.checkpoint)
    found, generator = _search(command, loading, examples)
    if page:
        report.write_report(tuning_page(generator, found, loading.checkpoint.name), page)
    _apply(command, loading.checkpoint, found)


def _read_reference(command: TuneCommand) -> list[str]:
    from gpt2tg.reading import check_text_column, read_examples

    human = Path(command.reference)
    check_text_column(command.text_column, human)
    return read_examples(human, "reference", command.compare.examples, command.text_column, notice)


def _check_can_apply(checkpoint: Checkpoint) -> None:
    """Refuse `--apply` for a model in which settings cannot be saved."""
    if not checkpoint.is_local:
        raise UserError(
            f"writes into the model's directory, and --{checkpoint.option} {checkpoint.name} is none: give one", "apply"
        )
    check_file(checkpoint.directory / GENERATION_CONFIG, "apply", notice, may_replace=True)


def _search(command: TuneCommand, loading: Loading, examples: list[str]) -> tuple[Tuning, Generator]:
    """Load the model, search, and print the outcome."""
    from gpt2tg.generation.generator import new_seed
    from gpt2tg.tuning.search import tune_settings
    from gpt2tg.tuning.summary import summary

    generator = loading.finish()
    base = command.base if command.base.seed is not None else replace(command.base, seed=new_seed())
    budget = command.tune.budget
    notice(f"seed {base.seed}")
    notice(f"measuring the reference; then settings are tried and the best checked, in {budget:g} s")
    prompts = command.compare.num_prompts or MOST_TUNING_PROMPTS
    found = tune_settings(generator, examples, base, prompts, budget, command.batch_size, notice)
    write_out(summary(found.check))
    return found, generator


def _apply(command: TuneCommand, checkpoint: Checkpoint, found: Tuning) -> None:
    """Save the settings in the checkpoint if they are a clear gain and `--apply` asks for it; print them."""
    best, is_clear = found.check.tuned.options, found.check.is_clear
    settings = as_flags(tunable_settings(best))
    if command.tune.apply and is_clear:
        file = write_tuned_settings(checkpoint.directory, best)
        notice(f"{file} now has {settings}: used where no flag says otherwise")
        return
    if command.tune.apply:
        notice("--apply leaves the checkpoint as it is")
    if settings:
        offer = "; --apply saves them in the checkpoint" if is_clear else ""
        notice(f"to write with the settings found: {settings}{offer}")
