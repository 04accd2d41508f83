"""Compare: run prompts through several decoding strategies."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from gpt2tg.checkpoint.tuned_settings import as_strategy
from gpt2tg.commands.flags import Flags, flags_of, notice_unused
from gpt2tg.commands.loading import Loading, ModelChoice, start_loading
from gpt2tg.commands.memory import advise_on_memory
from gpt2tg.io.processes import require_single_process
from gpt2tg.io.streams import notice, write_out
from gpt2tg.options import STRATEGIES, CompareOptions, DecodingOptions, PromptOptions, TuneOptions

# Decoding options that a comparison sets itself.
UNUSED = ("decoding", "replay")


@dataclass(frozen=True)
class CompareCommand:
    """Which strategies to compare on which prompts, and where the comparison goes."""

    compare: CompareOptions
    prompts: PromptOptions
    base: DecodingOptions
    """The settings that all strategies share."""
    given: frozenset[str]

    @classmethod
    def from_flags(cls, flags: Flags) -> CompareCommand:
        """Build the command.

        Raises:
            UserError: a value out of range, or flags that contradict each other.
        """
        base = flags.decoding(without=UNUSED)
        return cls(flags.pick(CompareOptions), flags.pick(PromptOptions), base, flags.names)

    @property
    def prompts_from_reference(self) -> bool:
        """Whether the prompts are the beginnings of the texts in `--reference`."""
        return self.compare.reference is not None and self.given.isdisjoint({"prompt", "prompts_file"})


@advise_on_memory("lower --batch_size or --max_length, or use --device cpu")
def compare(model: ModelChoice, command: CompareCommand) -> None:
    """Print texts and figures of each strategy, or write them to the files of `--output` and `--report`.

    Raises:
        UserError: a flag, a file or the model cannot be used; named before anything is generated.
        RunError: the model failed, or a file cannot be written.
    """
    require_single_process("is for", "compare")
    _notice_unused(command)

    from gpt2tg.comparison.strategies import parse_strategies

    parse_strategies(command.base, command.compare.strategies, say=lambda _: None)  # refuses a wrong --strategies
    model.check_device()

    from gpt2tg.comparison.run import prompt_texts, read_inputs, run_comparison

    prompts = [] if command.prompts_from_reference else prompt_texts(command.prompts, notice)
    inputs = read_inputs(command.compare, prompts, notice, command.prompts.text_column)
    loading = start_loading(model)
    strategies = command.compare.strategies or _all_strategies(loading, command)
    run_comparison(
        inputs,
        generator=loading.finish(),
        name=loading.checkpoint.name,
        base=command.base,
        chosen=strategies,
        write=write_out,
        say=notice,
        columns=shutil.get_terminal_size().columns,
        batch_size=command.prompts.batch_size,
    )


def _notice_unused(command: CompareCommand) -> None:
    why = "--compare goes through the strategies; --strategies chooses among them"
    notice_unused(command.given, UNUSED, why)
    notice_unused(command.given, flags_of(TuneOptions), "it does nothing without --tune")
    if command.given.isdisjoint({"reference", "train_file", "prompts_file"}):
        notice_unused(command.given, ["text_column"], "no file is read")


def _all_strategies(loading: Loading, command: CompareCommand) -> str:
    """Return all strategies, and after them the tuned settings of the checkpoint, in the form of `--strategies`."""
    tuned = loading.tuned_settings(command.base, command.given - {"decoding"})
    return ",".join([*STRATEGIES, *([as_strategy(tuned)] if tuned else [])])
