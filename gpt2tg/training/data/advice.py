"""What is worth saying about the data before a run, in a line each."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import ROUND_FLOOR, Context

import numpy as np

from gpt2tg.options import TrainingOptions
from gpt2tg.training.data.blocks import TrainingData
from gpt2tg.training.data.sources import TextSource

# Fewer examples than this and a model learns them by heart before it learns their style.
FEW_EXAMPLES = 1000

# Shares below which a thing is not worth a line.
MANY_COPIES, MANY_LONG, MUCH_PADDING = 0.01, 0.05, 0.1

# How many times as much, or as little, may be held out as was asked for.
FAR_FROM_ASKED = 2

# A validation loss from more tokens than this is hardly more exact, and takes long to measure.
MANY_MEASURED = 1_000_000


def advice(
    sources: tuple[TextSource, TextSource | None], data: TrainingData, options: TrainingOptions
) -> Iterator[str]:
    """Lines of advice, none where all is well."""
    found, measured = sources[0].found, sources[1]
    if found.garbled:
        yield (
            f"{counted(found.garbled, 'example')} with letters that an earlier conversion broke, "
            "\N{REPLACEMENT CHARACTER} or Ã¤ for ä: convert the text anew from its source"
        )
    if (found.examples > 1 or options.examples != "file") and found.examples < FEW_EXAMPLES:
        yield (
            f"{counted(found.examples, 'example')} is little, {FEW_EXAMPLES:,} or more is better: "
            "watch the validation loss, and train fewer --epochs when it rises"
        )
    copies = int((np.diff(np.sort(found.hashes)) == 0).sum())
    if copies > MANY_COPIES * found.examples:
        yield f"{_share(copies, found.examples)} of the examples are copies of others, and are learned by heart first"
    if measured is not None and (known := _known(sources[0], measured)):
        yield (
            f"{known:,} of {counted(measured.count, 'held-out example')} are learned from too: "
            "the validation loss looks better than it is"
        )
    yield from _on_the_split(data, options)
    if data.overlong > (0 if options.no_cross_examples else MANY_LONG * found.examples) and found.examples > 1:
        yield (
            f"{counted(data.overlong, 'example')} longer than a block of {options.block_size} tokens, the longest of "
            f"{data.longest:,}: the model never sees them whole, unless you raise --block_size"
        )
    if data.validation is not None and (tokens := len(data.validation) * data.block_size) > MANY_MEASURED:
        enough = options.validation_split * MANY_MEASURED / tokens
        split = f"--validation_split {_rounded_down(enough)}"
        way_out = "a shorter --validation_file" if options.validation_file else split
        yield (
            f"{tokens:,} tokens are held out and measured before training, after each epoch and at the end, "
            f"which takes long: {way_out} is enough"
        )
    if data.padding > MUCH_PADDING:
        yield f"{data.padding:.0%} of the blocks is padding, which costs time and teaches nothing: lower --block_size"


def _on_the_split(data: TrainingData, options: TrainingOptions) -> Iterator[str]:
    """What was held out, where that is not what was asked for."""
    asked = options.validation_split
    if options.validation_file or not asked:
        return
    if data.validation is None:
        if data.train_examples > 1:
            yield "nothing is held out: the examples are copies of one another; name a --validation_file to measure on"
        return
    held_out, total = data.validation_tokens, data.validation_tokens + data.train_tokens
    if not asked / FAR_FROM_ASKED <= held_out / total <= asked * FAR_FROM_ASKED:
        yield (
            f"{_share(held_out, total)} of the tokens are held out, not the {asked:.3g} of --validation_split: "
            "examples are few or of very different lengths, and a --validation_file would be measured on as it is"
        )


def counted(number: int, what: str) -> str:
    """1 block, 2 blocks."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if part / whole >= 0.01 else f"{part / whole:.1%}"


def _rounded_down(share: float) -> str:
    """To one significant digit. More than the share would be too much still."""
    return f"{Context(prec=1, rounding=ROUND_FLOOR).create_decimal_from_float(share):f}"


def _known(learned: TextSource, measured: TextSource) -> int:
    """How many of the examples to measure on are among those to learn from."""
    return int(np.isin(measured.found.hashes[measured.chosen], learned.found.hashes[learned.chosen]).sum())
