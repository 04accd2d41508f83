"""Show the first training blocks as text: --show_blocks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter

from gpt2tg.checkpoint.chat_template import ChatTemplate
from gpt2tg.checkpoint.text_stream import TextStream
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.options import TrainingOptions
from gpt2tg.training.data.blocks import NO_LOSS
from gpt2tg.training.data.training_data import TrainingData

# Enclose tokens that carry no loss.
MARKS = ("⟦", "⟧")


def preview_blocks(
    data: TrainingData, tokenizer: TextTokenizer, options: TrainingOptions, template: ChatTemplate | None = None
) -> Iterator[str]:
    """Yield the lines that show the first `show_blocks` blocks, after the template of conversations if there are any.

    Tokens without loss are enclosed in marks. Examples that do not attend to each other are on lines of their own.
    """
    if template is not None and options.show_blocks:
        yield f"{template.name}:"
        yield template.source.rstrip("\n")
    for number in range(min(options.show_blocks, len(data.train))):
        row = data.train[number]
        ids = row["input_ids"].tolist()
        labels = row["labels"].tolist() if "labels" in row else list(ids)
        labels[0] = NO_LOSS  # the first token has no context
        learned = sum(label != NO_LOSS for label in labels)
        padding = options.block_size - len(ids)
        marks = "".join(MARKS)
        yield f"block {number}: {len(ids)} tokens, {learned} carry loss, those in {marks} do not; {padding} padding"
        starts = [i for i, position in enumerate(row.get("position_ids", range(len(ids)))) if position == 0]
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            yield "".join(_marked_text(ids[start:end], labels[start:end], tokenizer))


def _marked_text(ids: list[int], labels: list[int], tokenizer: TextTokenizer) -> Iterator[str]:
    stream = TextStream(tokenizer, marks=tokenizer.special)
    pairs = zip(ids, (label == NO_LOSS for label in labels), strict=True)
    for is_without_loss, stretch in groupby(pairs, key=itemgetter(1)):
        text = "".join([stream.push(token) for token, _ in stretch]) + stream.finish()
        yield text.join(MARKS) if is_without_loss else text
