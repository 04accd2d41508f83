"""Generate: continue prompts, and print the texts or write them to a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from gpt2tg.checkpoint.tuned_settings import with_settings
from gpt2tg.commands.flags import Flags, notice_unused
from gpt2tg.commands.loading import ModelChoice, start_loading
from gpt2tg.commands.memory import advise_on_memory
from gpt2tg.commands.output import check_output, write_text
from gpt2tg.commands.spread import check_device_of_all, compute_alike, helping
from gpt2tg.io.processes import is_main_process, process_count, require_single_process
from gpt2tg.io.streams import notice
from gpt2tg.options import DecodingOptions, InspectionOptions, PromptOptions, unused_options, why_unused

if TYPE_CHECKING:  # they import torch
    from gpt2tg.batch.jobs import Job
    from gpt2tg.batch.rendering import Inspect
    from gpt2tg.generation.generator import Generator


# The advice when memory runs out.
ON_MEMORY = "lower --batch_size, --num_sequences or --max_length, or use --device cpu"


@dataclass(frozen=True)
class GenerateCommand:
    """Which prompts to continue, with which settings, and where the texts go."""

    decoding: DecodingOptions
    prompts: PromptOptions
    show_probabilities: bool
    given: frozenset[str]
    """The flags that were given. All other options have their defaults."""

    @classmethod
    def from_flags(cls, flags: Flags, **defaults: Any) -> GenerateCommand:
        """Build the command; `defaults` are those of the script, by option name.

        Raises:
            UserError: a value out of range, or flags that contradict each other.
        """
        return cls(
            flags.decoding(**defaults),
            flags.pick(PromptOptions),
            flags.pick(InspectionOptions).show_probabilities,
            flags.names,
        )


def generate(model: ModelChoice, command: GenerateCommand) -> None:
    """Continue the prompts. The processes of a launcher share them: the first one reads them and writes the texts.

    Raises:
        UserError: a flag, a file or the model cannot be used; named before anything is generated.
        RunError: the model failed, or the output cannot be written.
    """
    if command.prompts.prompts_file is None:
        require_single_process("has the prompts that several processes share. A single prompt is for", "prompts_file")
    check_device_of_all(model)
    if "prompt_lookup" not in command.decoding.strategy.uses:
        model = model.without_draft(why_unused("draft_model", command.decoding))
    if is_main_process():
        _generate(model, command)
    else:
        _help(model, command)


@advise_on_memory(ON_MEMORY)
def _generate(model: ModelChoice, command: GenerateCommand) -> None:
    notice_unused_decoding(command.decoding, command.given)
    check_output(command.prompts, resumes=True)
    model.check_device()
    _notice_unused_prompts(command)

    from gpt2tg.batch.prompts import read_prompts

    prompts = read_prompts(command.prompts, notice)
    loading = start_loading(model)
    tuned = loading.tuned_settings(command.decoding, command.given)
    decoding = with_settings(command.decoding, tuned)

    from gpt2tg.batch.earlier import earlier_run
    from gpt2tg.batch.jobs import plan_jobs
    from gpt2tg.batch.writing import write_job, write_jobs, write_jobs_together

    earlier = earlier_run(command.prompts, command.show_probabilities)
    generator = loading.finish()
    inspect = _inspector(generator, command)
    jobs = plan_jobs(generator, prompts, decoding, earlier, notice)
    if generator.draft:
        _notice_undrafted(generator, jobs, command.prompts.batch_size)
    if process_count() > 1:
        compute_alike(generator)
        write_jobs_together(generator, jobs, command.prompts, earlier, notice, inspect)
    elif len(jobs) == 1 and jobs[0].options.draws == 1 and _is_stdout(command.prompts):
        write_job(generator, jobs[0], write_text, notice, inspect)
    else:
        write_jobs(generator, jobs, command.prompts, earlier, notice, inspect)


def _help(model: ModelChoice, command: GenerateCommand) -> None:
    """Generate texts that the first process writes."""
    with helping(model, ON_MEMORY) as generator:
        from gpt2tg.batch.writing import help_to_write

        help_to_write(generator, command.prompts, _inspector(generator, command))


def _inspector(generator: Generator, command: GenerateCommand) -> Inspect:
    """Return the function that computes the token probabilities of a sample, if they are asked for."""
    from gpt2tg.inspection.tokens import inspect_sample

    return partial(inspect_sample, generator) if command.show_probabilities else None


def notice_unused_decoding(options: DecodingOptions, given: frozenset[str]) -> None:
    """Print a notice for each decoding flag that the strategy does not use."""
    for name in unused_options(given, options):
        notice_unused(given, [name], why_unused(name, options))


def _notice_unused_prompts(command: GenerateCommand) -> None:
    if command.prompts.prompts_file:
        notice_unused(command.given, ["prompt"], "the prompts come from --prompts_file")
    else:
        notice_unused(command.given, ["text_column"], "there is no --prompts_file")


def _notice_undrafted(generator: Generator, jobs: Sequence[Job], batch_size: int) -> None:
    """Print a notice if some texts get no drafts: those that may exceed the context length, and, without our CPU
    kernels, several at a time."""
    positions = generator.model.shape.n_positions
    if any(len(job.request.ids) + job.request.max_new_tokens > positions for job in jobs):
        notice(f"--draft_model is not used for texts that may exceed the context length of {positions}")
    are_together = min(len(jobs), batch_size) > 1 or any(job.options.draws > 1 for job in jobs)
    if are_together and generator.model.kernel_model is None:
        several = "several texts at a time (--num_sequences, --best_of, --batch_size)"
        notice(f"--draft_model is not used on this device for {several}")


def _is_stdout(options: PromptOptions) -> bool:
    """Whether texts are printed as they are, so that a single one can be streamed."""
    return options.output is None and options.format == "text"
