"""Candidates: print the most probable next tokens of each prompt."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2tg.commands.flags import Flags, inspection_flags, notice_unused
from gpt2tg.commands.loading import ModelChoice, start_loading
from gpt2tg.commands.memory import advise_on_memory
from gpt2tg.commands.output import check_output
from gpt2tg.io.processes import require_single_process
from gpt2tg.io.streams import notice
from gpt2tg.options import DecodingOptions, InspectionOptions, PromptOptions

USED = ("candidates", "overflow", "prompt", "prompts_file", "chat", "text_column", "output", "format", "overwrite")


@dataclass(frozen=True)
class CandidatesCommand:
    """How many next tokens to print of which prompts."""

    count: int
    decoding: DecodingOptions
    """Only `overflow` is used."""
    prompts: PromptOptions
    given: frozenset[str]

    @classmethod
    def from_flags(cls, flags: Flags) -> CandidatesCommand:
        """Build the command; `--candidates` is among the flags.

        Raises:
            UserError: a value out of range, or flags that contradict each other, even if the command does not use them.
        """
        count = flags.pick(InspectionOptions).candidates or 1
        return cls(count, flags.decoding(), flags.pick(PromptOptions), flags.names)


@advise_on_memory("shorten the prompts, close other programs, or use --device cpu")
def candidates(model: ModelChoice, command: CandidatesCommand) -> None:
    """Print the most probable next tokens of each prompt, or write them to a file.

    Raises:
        UserError: a flag, a file or the model cannot be used.
        RunError: the model failed, or the output cannot be written.
    """
    require_single_process("is for", "candidates")
    why = "--candidates shows the model's own probabilities of the next token"
    notice_unused(command.given, inspection_flags(without=USED), why)
    model = model.without_draft(why)
    check_output(command.prompts)
    model.check_device()

    from gpt2tg.batch.prompts import read_prompts, trailing_spaces, with_template

    prompts = read_prompts(command.prompts, notice)
    if line := trailing_spaces(["" if prompt.messages else prompt.text for prompt in prompts]):
        notice(line)
    loading = start_loading(model)

    from gpt2tg.batch.scoring import write_candidates

    generator = loading.finish()
    prompts = with_template(prompts, generator.chat)
    write_candidates(generator, prompts, command.prompts, command.count, command.decoding.overflow)
