"""What a comparison is asked for, at a shell or in a session: read and checked first, then carried out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gpt2tg.batch.prompts import read_prompts, trailing_spaces
from gpt2tg.comparison import report, table
from gpt2tg.comparison.compare import compare, human_text
from gpt2tg.comparison.strategies import strategies_to_compare
from gpt2tg.generation.generator import Generator, Sample, new_seed
from gpt2tg.options import DEFAULT_REFERENCE_PROMPTS, CompareOptions, DecodingOptions, PromptOptions
from gpt2tg.reading import check_text_column, read_examples


@dataclass(frozen=True)
class Request:
    """What is compared with what, and where the comparison goes."""

    prompts: tuple[str, ...]
    """None where they come from the reference."""
    reference: tuple[str, ...]
    """The examples of human text; none without a reference."""
    num_prompts: int
    training: str | None
    """The text that the model learned from."""
    output: Path | None
    report: Path | None


def read_request(
    where: CompareOptions, prompts: Sequence[str], say: Callable[[str], None], text_column: str | None = None
) -> Request:
    """Read the files that are named, and see that those to be written can be, before anything is computed.

    Args:
        prompts: none where they come from the reference.
        say: takes a line on what is not used, and on which column of a table is read.
        text_column: of the tables.

    Raises:
        UserError: a file that cannot be read, or should not be written.
    """
    if where.num_prompts is not None and prompts:
        say("--num_prompts is not used: the prompts do not come from --reference")
    output = table.file_to_write(where.output, table.FORMATS, "output", where.overwrite, say)
    page = table.file_to_write(where.report, report.FORMATS, "report", where.overwrite, say)
    files = [Path(file) for file in (where.reference, where.train_file) if file is not None]
    if files:
        check_text_column(text_column, *files)
    examples: list[str] = []
    if where.reference is not None:
        examples = read_examples(Path(where.reference), "reference", where.examples, text_column, say)
    training = None
    if where.train_file is not None:
        training = "\n".join(read_examples(Path(where.train_file), "train_file", "file", text_column, say))
    count = where.num_prompts or DEFAULT_REFERENCE_PROMPTS
    return Request(tuple(prompts), tuple(examples), count, training, output, page)


def texts_of(options: PromptOptions, say: Callable[[str], None]) -> list[str]:
    """The prompts that the options name.

    Raises:
        UserError: the file cannot be read, or holds no prompt.
    """
    prompts = read_prompts(options, say)
    if any(prompt.settings for prompt in prompts):
        say("settings in --prompts_file are not used: all prompts go through the same strategies")
    texts = [prompt.text for prompt in prompts]
    if line := trailing_spaces(texts):
        say(line)
    return texts


def carry_out(
    request: Request,
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
    """Compare: texts and figures, and the files that are asked for. Where there are files, the texts stay in them.

    Args:
        name: of the model, for the page.
        base: settings that all strategies share.
        chosen: the strategies and settings of their own, as `--strategies` has them; None is all there are.
        write: takes texts and figures.
        say: takes all other talk.
        columns: of the table.

    Raises:
        UserError: a prompt leaves no room, or the reference is too short.
        RunError: the model failed, or a file cannot be written.
    """
    prompts, human = request.prompts, None
    if request.reference:
        human = human_text(generator, request.reference, base, prompts, request.num_prompts)
        if not prompts:
            base = replace(base, max_length=None, max_new_tokens=human.room)
            prompts = human.prompts
    if base.seed is None:
        base = replace(base, seed=new_seed())
    say(f"seed {base.seed}")
    strategies = strategies_to_compare(base, chosen, say)
    show = _counter(say) if request.output or request.report else table.text_writer(write)
    found = compare(generator, prompts, strategies, human, request.training, batch_size, show)
    write(table.terminal_table(found, columns))
    if request.output:
        table.write_table(found, request.output)
    if request.report:
        report.write_report(report.page(generator, found, name), request.report)


def _counter(say: Callable[[str], None]) -> Callable[[str, DecodingOptions, Sequence[Sample]], None]:
    """Says that it goes on, where the texts themselves are not shown."""

    def show(name: str, _: DecodingOptions, samples: Sequence[Sample]) -> None:
        say(f"{name}: {len(samples)} text{'' if len(samples) == 1 else 's'}")

    return show
