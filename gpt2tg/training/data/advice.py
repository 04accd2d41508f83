"""Advice on the training data, printed before a run: one line for each likely problem."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import ROUND_FLOOR, Context

import numpy as np

from gpt2tg.options import TrainingOptions
from gpt2tg.training.data.corpus import Corpus
from gpt2tg.training.data.sources import Sources, TextSource
from gpt2tg.training.data.training_data import TrainingData

# With fewer examples a model overfits before it learns their style.
FEW_EXAMPLES = 1000

# Smaller shares of copies, of overlong examples and of padding are not reported.
MANY_COPIES, MANY_LONG, MUCH_PADDING = 0.01, 0.05, 0.1

# The held-out share may be this many times larger or smaller than requested.
SPLIT_TOLERANCE = 2

# More validation tokens hardly make the loss more exact, and take long to measure.
MANY_MEASURED = 1_000_000


def advice(sources: Sources, data: TrainingData, options: TrainingOptions) -> Iterator[str]:
    """Yield lines of advice; none if all is well."""
    source, validation_source = sources
    yield from _on_the_text(source.corpus, options)
    if validation_source is not None:
        held_out = validation_source.corpus.hashes[validation_source.chosen]
        yield from on_known_examples(source, held_out, "validation")
    if validation_source is not None and not validation_source.is_held_out:
        yield from _on_the_length(data, f"--max_eval_examples {_enough_examples(validation_source, data)}")
    else:
        is_selected = source.times is not None or (validation_source is not None and validation_source.most is not None)
        yield from _on_the_split(data, options, is_selected)
    yield from _on_the_blocks(source.corpus, data, options)


def on_known_examples(source: TextSource, hashes: np.ndarray, name: str) -> Iterator[str]:
    """Yield advice if examples to measure on are also trained on.

    Args:
        hashes: (examples,) of those to measure on, as in a `Corpus`.
        name: of the loss that is measured on them.
    """
    if known := int(np.isin(hashes, source.corpus.hashes[source.chosen]).sum()):
        examples = counted(len(hashes), f"{'held-out' if name == 'validation' else name} example")
        yield f"{known:,} of {examples} are learned from too: the {name} loss looks better than it is"


def _on_the_text(corpus: Corpus, options: TrainingOptions) -> Iterator[str]:
    if corpus.garbled:
        yield (
            f"{counted(corpus.garbled, 'example')} with letters that an earlier conversion broke, "
            "\N{REPLACEMENT CHARACTER} or Ã¤ for ä: convert the text again from its source"
        )
    if (corpus.examples > 1 or options.examples != "file") and corpus.examples < FEW_EXAMPLES:
        yield (
            f"{counted(corpus.examples, 'example')} is little, {FEW_EXAMPLES:,} or more is better: "
            "watch the validation loss, and use fewer --epochs if it rises"
        )
    if options.chat_template and corpus.chat_template is None:
        yield "--chat_template is not used: the text has no conversations, such as a .jsonl with messages"
    copies = int((np.diff(np.sort(corpus.hashes)) == 0).sum())
    if copies > MANY_COPIES * corpus.examples and not options.drop_copies:
        yield (
            f"{_percent(copies, corpus.examples)} of the examples are copies of others, which the model memorises "
            "first: add --drop_copies"
        )


def _on_the_split(data: TrainingData, options: TrainingOptions, is_selected: bool) -> Iterator[str]:
    """Yield advice if no examples are held out, much more or less than requested, or too many to measure quickly.

    Args:
        is_selected: examples are left out or repeated, so that shares mean nothing.
    """
    requested = options.validation_split
    if data.validation is None:
        if requested and data.train_examples > 1:
            yield "nothing is held out: the examples are copies of one another; give a --validation_file"
        return
    held_out, total = data.validation_tokens, data.validation_tokens + data.train_tokens
    is_near = requested / SPLIT_TOLERANCE <= held_out / total <= requested * SPLIT_TOLERANCE
    if requested and not is_near and not is_selected:
        yield (
            f"{_percent(held_out, total)} of the tokens are held out, not the {requested:.3g} of --validation_split: "
            "there are few examples, or their lengths differ much. A --validation_file is used as it is"
        )
    enough = requested * MANY_MEASURED / _measured_tokens(data)
    yield from _on_the_length(data, f"--validation_split {_round_down(enough)}")


def _on_the_length(data: TrainingData, enough: str) -> Iterator[str]:
    """Yield advice if the validation text takes long to measure.

    Args:
        enough: the flag that makes it short enough.
    """
    if (tokens := _measured_tokens(data)) > MANY_MEASURED:
        yield (
            f"{tokens:,} tokens are held out and measured before training, after each epoch and at the end, "
            f"which takes long: {enough} is enough"
        )


def _measured_tokens(data: TrainingData) -> int:
    return 0 if data.validation is None else len(data.validation) * data.block_size


def _enough_examples(validation: TextSource, data: TrainingData) -> str:
    """Return how many examples of a validation text of its own are enough, with one significant digit."""
    used = validation.count if validation.most is None else min(validation.count, validation.most)
    return _round_down(max(1, used * MANY_MEASURED / max(1, _measured_tokens(data))))


def _on_the_blocks(corpus: Corpus, data: TrainingData, options: TrainingOptions) -> Iterator[str]:
    """Yield advice on a block size that is too small for the examples, or too large."""
    tolerated = 0 if data.is_apart else MANY_LONG * corpus.examples
    if corpus.examples > 1 and data.overlong > tolerated:
        yield (
            f"{counted(data.overlong, 'example')} longer than a block of {options.block_size} tokens, the longest "
            f"{data.longest:,}: the model never sees them whole; raise --block_size"
        )
    if data.padding > MUCH_PADDING:
        yield f"{data.padding:.0%} of the blocks is padding, which costs time and teaches nothing: lower --block_size"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: 1 block, 2 blocks."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if part / whole >= 0.01 else f"{part / whole:.1%}"


def _round_down(share: float) -> str:
    """Return the share with one significant digit. Rounded up, it would be too much still."""
    return f"{Context(prec=1, rounding=ROUND_FLOOR).create_decimal_from_float(share):f}"
