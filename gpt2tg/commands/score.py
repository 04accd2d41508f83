"""Score: print how probable the model finds given lines."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2tg.commands.flags import Flags, inspection_flags, notice_unused
from gpt2tg.commands.loading import ModelChoice, start_loading
from gpt2tg.commands.memory import advise_on_memory
from gpt2tg.commands.output import check_output
from gpt2tg.commands.spread import check_device_of_all, compute_alike, helping
from gpt2tg.io.processes import is_main_process, process_count
from gpt2tg.io.streams import notice
from gpt2tg.options import InspectionOptions, PromptOptions

# The advice when memory runs out.
ON_MEMORY = "score shorter lines, close other programs, or use --device cpu"

USED = ("score", "text_column", "show_probabilities", "output", "format", "overwrite")


@dataclass(frozen=True)
class ScoreCommand:
    """Which lines to score, and where the scores go."""

    lines: str
    """The file with the lines; `-` is stdin."""
    inspection: InspectionOptions
    prompts: PromptOptions
    given: frozenset[str]

    @classmethod
    def from_flags(cls, flags: Flags) -> ScoreCommand:
        """Build the command; `--score` is among the flags.

        Raises:
            UserError: a value out of range, or flags that contradict each other, even if the command does not use them.
        """
        flags.decoding()
        inspection = flags.pick(InspectionOptions)
        return cls(inspection.score or "-", inspection, flags.pick(PromptOptions), flags.names)


def score(model: ModelChoice, command: ScoreCommand) -> None:
    """Print log-probability and perplexity of each line, or write them to a file.

    The processes of a launcher share the lines: the first one reads them and writes the scores.

    Raises:
        UserError: a flag, a file or the model cannot be used.
        RunError: the model failed, or the output cannot be written.
    """
    check_device_of_all(model)
    model = model.without_draft("--score measures given lines as they are")
    if is_main_process():
        _score(model, command)
    else:
        _help(model, command)


@advise_on_memory(ON_MEMORY)
def _score(model: ModelChoice, command: ScoreCommand) -> None:
    notice_unused(command.given, inspection_flags(without=USED), "--score measures given lines as they are")
    check_output(command.prompts)
    model.check_device()
    loading = start_loading(model)

    from gpt2tg.batch.scoring import lines_to_score, write_scores, write_scores_together

    lines = lines_to_score(command.lines, command.prompts.text_column, notice)
    generator = loading.finish()
    compute_alike(generator)
    write = write_scores if process_count() == 1 else write_scores_together
    write(generator, lines, command.prompts, command.inspection)


def _help(model: ModelChoice, command: ScoreCommand) -> None:
    """Score lines whose scores the first process writes."""
    with helping(model, ON_MEMORY) as generator:
        from gpt2tg.batch.scoring import help_to_score

        help_to_score(generator, command.prompts, command.inspection)
