"""What the scripts do once their flags are parsed. The heavy wings are imported only when they are needed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gpt2tg.cli import notice, pick
from gpt2tg.errors import UserError
from gpt2tg.options import (
    FROM_SCRATCH_FLAGS,
    DecodingOptions,
    DeviceOptions,
    EvaluationOptions,
    ModelNameOptions,
    PromptOptions,
    TrainingOptions,
    decoding_options,
    only,
    unused_options,
)

if TYPE_CHECKING:
    from gpt2tg.generation import Generator


def train(given: dict[str, Any], **defaults: Any) -> None:
    """Fine-tune as the flags say, and write samples if they ask for some."""
    options = pick(TrainingOptions, given, **defaults)
    model_name = pick(ModelNameOptions, given).model_name
    if options.from_scratch and "model_name" in given:
        notice("--model_name is not used: --from_scratch starts from a new model")
    for name in () if options.from_scratch else FROM_SCRATCH_FLAGS:
        if name in given:
            notice(f"--{name} is not used: it shapes a new model, which only --from_scratch makes")
    if not options.generate_samples:
        for name in ("prompt", "num_samples"):
            if name in given:
                notice(f"--{name} is not used: samples are written with --generate_samples only")

    from gpt2tg.training.finetune import finetune

    finetune(options, model_name)
    if options.generate_samples:
        _write_samples(options)


def _write_samples(options: TrainingOptions) -> None:
    from gpt2tg.generation import load

    decoding = DecodingOptions(num_sequences=options.num_samples, seed=options.seed)
    _print_texts(load(options.output_dir), options.prompt, decoding)


def generate(given: dict[str, Any], name: str | None, option: str, **defaults: Any) -> None:
    """Continue the prompt as the flags say; the texts go to stdout.

    Args:
        name: the model, as written after the flag `option`.
    """
    if not name:
        raise UserError("is required: give the directory of a fine-tuned model", option)
    decoding = settle_decoding(given, **defaults)
    prompt = pick(PromptOptions, given).prompt
    device = pick(DeviceOptions, given).device

    from gpt2tg.generation import load

    _print_texts(load(name, device, option), prompt, with_seed(decoding))


def evaluate(given: dict[str, Any]) -> None:
    """Measure a model on a text; the figures go to stdout."""
    options = pick(EvaluationOptions, given)
    device = pick(DeviceOptions, given).device

    from gpt2tg.generation import choose_device
    from gpt2tg.training.evaluate import evaluate as measure

    found = measure(pick(ModelNameOptions, given).model_name, options, choose_device(device))
    print(f"tokens {found.tokens}")
    print(f"loss {found.loss:.4f}")
    print(f"perplexity {found.perplexity:.2f}")
    print(f"bits per byte {found.bits_per_byte:.4f}")


def settle_decoding(given: dict[str, Any], **defaults: Any) -> DecodingOptions:
    """The decoding options for the flags given; says which of them the strategy has no use for."""
    options = decoding_options(only(DecodingOptions, given), **only(DecodingOptions, defaults))
    for name in unused_options(given, options):
        why = (
            "--temperature 0 is greedy"
            if options.temperature == 0
            else f"--decoding {options.decoding} has no use for it"
        )
        notice(f"--{name} is not used: {why}")
    return options


def with_seed(options: DecodingOptions) -> DecodingOptions:
    """Choose and say a seed where one is needed and none was given, so that the texts can be had again."""
    if options.seed is not None or not options.strategy.samples:
        return options
    from gpt2tg.generation import new_seed

    seed = new_seed()
    notice(f"seed {seed}: the same texts again with --seed {seed}")
    return replace(options, seed=seed)


def _print_texts(generator: Generator, prompt: str, options: DecodingOptions) -> None:
    """Texts to stdout, a blank line between them; their numbers to stderr, so that a file holds the texts alone."""
    if options.num_sequences == 1:
        _stream_text(generator, prompt, options)
        return
    for number, sample in enumerate(generator.generate(prompt, options), start=1):
        notice(f"--- text {number} of {options.num_sequences} ---")
        print(sample.text + "\n", flush=True)


def _stream_text(generator: Generator, prompt: str, options: DecodingOptions) -> None:
    """The one text, piece by piece as it is written."""
    chunks = generator.stream(prompt, options)
    first = next(chunks)  # what is refused is refused here, before anything stands on stdout
    write = writer()
    write(prompt + first.text)
    for chunk in chunks:
        write(chunk.text)
    write("\n")


def writer() -> Callable[[str], None]:
    """Writes to stdout and shows it at once."""

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    return write


def compare(given: dict[str, Any], name: str, option: str) -> None:
    """One prompt through every strategy, one after the other, on stdout."""
    from gpt2tg.comparison import compare_strategies
    from gpt2tg.generation import load

    if "decoding" in given:
        notice("--decoding is not used: --compare goes through all strategies")
    decoding = with_seed(decoding_options(only(DecodingOptions, {**given, "decoding": DecodingOptions.decoding})))
    generator = load(name, pick(DeviceOptions, given).device, option)
    compare_strategies(generator, pick(PromptOptions, given).prompt, decoding, writer())


def interactive(given: dict[str, Any], name: str, option: str) -> None:
    """A session at the terminal, or prompts read from stdin, one a line, where it is none."""
    from gpt2tg.generation import load
    from gpt2tg.session import Session

    decoding = settle_decoding(given, num_sequences=1)
    generator = load(name, pick(DeviceOptions, given).device, option)
    session = Session(generator, decoding, name, write=writer(), say=notice)
    if sys.stdin.isatty():
        session.welcome()
        session.run(lambda: input("> "))
    else:
        session.run(_line_of_stdin)


def _line_of_stdin() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n")
