"""A comparison from the command line or a session: read and check all inputs first, then run it and write the files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gpt2tg.batch.prompts import read_prompts, trailing_spaces
from gpt2tg.comparison import export, report
from gpt2tg.comparison.reference import prepare_human_text
from gpt2tg.comparison.results import compare_strategies
from gpt2tg.comparison.strategies import parse_strategies
from gpt2tg.comparison.table import terminal_table, text_writer
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import Generator, Sample, new_seed
from gpt2tg.options import DEFAULT_REFERENCE_PROMPTS, CompareOptions, DecodingOptions, PromptOptions
from gpt2tg.reading import check_text_column, read_examples


@dataclass(frozen=True)
class ComparisonInputs:
    """The inputs of a comparison, read from their files, and the files to write."""

    prompts: tuple[str, ...]
    """Empty if they are to come from the reference."""
    reference: tuple[str, ...]
    """Examples of human text; empty without a reference."""
    num_prompts: int
    """How many prompts to take from the reference."""
    training: str | None
    """The text that the model was trained on."""
    output: Path | None
    report: Path | None


def read_inputs(
    options: CompareOptions, prompts: Sequence[str], say: Callable[[str], None], text_column: str | None = None
) -> ComparisonInputs:
    """Read the files that the options name, and check that the output files can be written.

    Args:
        prompts: empty if they are to come from the reference.
        say: receives notices: options without effect, the column read from a table.
        text_column: the column to read if the files are tables.

    Raises:
        UserError: a file cannot be read, or an output file cannot be written.
    """
    if options.num_prompts is not None and prompts:
        say("--num_prompts is not used: the prompts do not come from --reference")
    output = export.file_to_write(options.output, export.FORMATS, "output", options.overwrite, say)
    page = export.file_to_write(options.report, report.FORMATS, "report", options.overwrite, say)
    files = [Path(file) for file in (options.reference, options.train_file) if file is not None]
    if files:
        check_text_column(text_column, *files)
    examples: list[str] = []
    if options.reference is not None:
        examples = read_examples(Path(options.reference), "reference", options.examples, text_column, say)
    training = None
    if options.train_file is not None:
        training = "\n".join(read_examples(Path(options.train_file), "train_file", "file", text_column, say))
    count = options.num_prompts or DEFAULT_REFERENCE_PROMPTS
    return ComparisonInputs(tuple(prompts), tuple(examples), count, training, output, page)


def prompt_texts(options: PromptOptions, say: Callable[[str], None]) -> list[str]:
    """Read the prompts that the options name.

    Raises:
        UserError: the file cannot be read, or has no prompt.
    """
    prompts = read_prompts(options, say)
    if any(prompt.messages for prompt in prompts):
        raise UserError(f"{options.prompts_file} holds conversations: give plain prompts to compare", "prompts_file")
    if any(prompt.settings for prompt in prompts):
        say("settings in --prompts_file are not used: all prompts go through the same strategies")
    texts = [prompt.text for prompt in prompts]
    if line := trailing_spaces(texts):
        say(line)
    return texts


def run_comparison(
    inputs: ComparisonInputs,
    *,
    generator: Generator,
    name: str,
    base: DecodingOptions,
    chosen: str | None,
    write: Callable[[str], None],
    say: Callable[[str], None],
    columns: int,
    batch_size: int = PromptOptions.batch_size,
) -> None:
    """Compare the strategies, print the table, and write the files. The texts are printed only if there are no files.

    Args:
        name: name of the model, for the title of the report.
        base: options that all strategies share.
        chosen: the value of `--strategies`; None compares all strategies.
        write: receives texts and table.
        say: receives notices.
        columns: width of the terminal.

    Raises:
        UserError: a prompt exceeds the context length, or the reference is too short.
        RunError: the model failed, or a file cannot be written.
    """
    prompts, human = inputs.prompts, None
    if inputs.reference:
        human = prepare_human_text(generator, inputs.reference, base, prompts, inputs.num_prompts)
        if not prompts:
            base = replace(base, max_length=None, max_new_tokens=human.new_tokens)
            prompts = human.prompts
    if base.seed is None:
        base = replace(base, seed=new_seed())
    say(f"seed {base.seed}")
    strategies = parse_strategies(base, chosen, say)
    show = _progress(say) if inputs.output or inputs.report else text_writer(write)
    comparison = compare_strategies(generator, prompts, strategies, human, inputs.training, batch_size, show)
    write(terminal_table(comparison, columns))
    if inputs.output:
        export.write_comparison(comparison, inputs.output)
    if inputs.report:
        report.write_report(report.report_page(generator, comparison, name), inputs.report)


def _progress(say: Callable[[str], None]) -> Callable[[str, DecodingOptions, Sequence[Sample]], None]:
    """Return a function that reports each finished strategy in one line."""

    def show(name: str, _: DecodingOptions, samples: Sequence[Sample]) -> None:
        say(f"{name}: {len(samples)} text{'' if len(samples) == 1 else 's'}")

    return show
