"""Load the training data: tokenize both sides of the split, and pack them into blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.options import TrainingOptions
from gpt2tg.training.data.blocks import BlockRange, Blocks
from gpt2tg.training.data.packing import keeps_apart, pack
from gpt2tg.training.data.selection import at_most, repeat_in_passes
from gpt2tg.training.data.sources import Sources, TextSource
from gpt2tg.training.data.split import held_out_lengths
from gpt2tg.training.data.token_cache import tokenize
from gpt2tg.training.data.tokens import Tokens


@dataclass(frozen=True)
class TrainingData:
    """Training blocks and validation blocks, each of at most `block_size` ids."""

    train: Blocks | BlockRange
    validation: Blocks | BlockRange | None
    train_examples: int
    validation_examples: int
    train_tokens: int
    validation_tokens: int
    block_size: int
    overlong: int  # examples that are longer than a block
    longest: int  # tokens of the longest example
    is_apart: bool  # whether examples are packed whole, with attention and positions apart

    @property
    def padding(self) -> float:
        """Share of the training blocks that is padding."""
        return 1 - self.train_tokens / (len(self.train) * self.block_size)

    @property
    def fingerprints(self) -> dict[str, str | None]:
        """Hashes of the blocks: equal for equal text, split, tokenizer and packing, whatever the files are called."""
        return {
            "training": self.train.fingerprint,
            "validation": None if self.validation is None else self.validation.fingerprint,
        }


def load_data(sources: Sources, tokenizer: TextTokenizer, options: TrainingOptions) -> TrainingData:
    """Tokenize the text, through the cache, and pack both sides of the split into blocks.

    Raises:
        UserError: no block has a token that carries loss.
        RunError: the token cache cannot be written to.
    """
    source, validation_source = sources
    is_apart = keeps_apart(options, any(side.corpus.has_prompts for side in sources if side is not None))
    tokens = tokenize(source.corpus, tokenizer)
    blocks = pack(tokens, *select_spans(tokens, source, options), options.block_size, is_apart)
    train: Blocks | BlockRange = blocks
    validation: Blocks | BlockRange | None = None
    validation_examples = 0
    if validation_source is not None:
        is_same = validation_source.corpus is source.corpus
        validation_tokens = tokens if is_same else tokenize(validation_source.corpus, tokenizer)
        spans = select_spans(validation_tokens, validation_source, options)
        validation = pack(validation_tokens, *spans, options.block_size, is_apart)
        validation_examples = len(spans[0])
    elif options.validation_split and source.corpus.examples == 1 and len(blocks) > 1:
        train, validation = _hold_out_last_blocks(blocks, options.validation_split)
        validation_examples = 1
    lengths = np.diff(tokens.ends, prepend=0)
    return TrainingData(
        train,
        validation,
        train_examples=source.count,
        validation_examples=validation_examples,
        train_tokens=int(train.lengths.sum()),
        validation_tokens=0 if validation is None else int(validation.lengths.sum()),
        block_size=options.block_size,
        overlong=int((lengths > options.block_size).sum()),
        longest=int(lengths.max()),
        is_apart=is_apart,
    )


def _hold_out_last_blocks(blocks: Blocks, share: float) -> tuple[BlockRange, BlockRange]:
    """Split the blocks of a single example: at least one on each side."""
    held_out = min(max(1, round(len(blocks) * share)), len(blocks) - 1)
    border = len(blocks) - held_out
    return BlockRange(blocks, range(border)), BlockRange(blocks, range(border, len(blocks)))


def select_spans(tokens: Tokens, source: TextSource, options: TrainingOptions) -> tuple[np.ndarray, np.ndarray]:
    """Return the starts and ends, in the tokens, of the examples on one side of the split.

    Examples cut in two have a span on each side: their beginning is trained on, their end is held out.
    """
    starts, ends, chosen, partial = tokens.starts, tokens.ends, source.chosen, source.split.partial
    if len(partial):
        lengths = ends[partial] - _completion_starts(tokens, starts[partial], ends[partial])
        hashes = source.corpus.hashes[partial]
        borders = ends.copy()
        borders[partial] -= held_out_lengths(lengths, hashes, options.validation_split, options.seed_of_split)
        chosen[partial] = True if source.times is None else source.times[partial] > 0
        starts, ends = (np.where(chosen, borders, starts), ends) if source.is_held_out else (starts, borders)
        chosen &= starts < ends
    chosen = at_most(chosen, source.most, options.seed_of_split)
    if source.times is None:
        return starts[chosen], ends[chosen]
    return repeat_in_passes(starts[chosen], ends[chosen], source.times[chosen])


def _completion_starts(tokens: Tokens, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return where the completion of each example starts in the tokens; its own start if there are no prompts.

    Args:
        starts, ends: (examples,) in the tokens.
    """
    if tokens.learned is None:
        return starts
    spans = zip(starts, ends, strict=True)
    return np.array([start + np.argmax(tokens.learned[start:end]) for start, end in spans])
