"""Pack examples into blocks: cut one stream of tokens, or fill blocks with whole examples."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from gpt2tg.errors import UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.training.data.blocks import Blocks
from gpt2tg.training.data.tokens import Tokens


def keeps_apart(options: TrainingOptions, has_prompts: bool) -> bool:
    """Whether examples are packed whole, with attention and positions apart.

    That is the default for examples with prompts: an answer without its question teaches to make things up.

    Args:
        has_prompts: whether some of the text carries no loss.
    """
    return options.no_cross_examples or (has_prompts and not options.cross_examples)


def pack(tokens: Tokens, starts: np.ndarray, ends: np.ndarray, block_size: int, is_apart: bool) -> Blocks:
    """Pack examples into blocks of at most `block_size` ids. Only blocks without any loss are dropped.

    Args:
        starts, ends: (examples,) in the tokens.
        is_apart: whether examples are packed whole, with attention and positions apart.

    Raises:
        UserError: no block has a token that carries loss.
    """
    if is_apart:
        spans = fill_blocks(*split_long_examples(starts, ends, block_size), block_size)
    else:
        spans = cut_stream(starts, ends, block_size)
    return _drop_blocks_without_loss(Blocks(tokens, *spans, restart=is_apart))


def _drop_blocks_without_loss(blocks: Blocks) -> Blocks:
    """Drop blocks that lie within a long prompt: their mean loss would be 0 / 0.

    Raises:
        UserError: none is left.
    """
    if blocks.tokens.learned is None:
        return blocks
    kept = blocks.have_loss(blocks.tokens.learned)
    if not kept.any():
        raise UserError(
            "has only prompts longer than a block, so that no completion is trained on: raise --block_size",
            "train_file",
        )
    return blocks.select(kept)


def cut_stream(starts: np.ndarray, ends: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Join the examples to one stream, and cut it every `block_size` tokens.

    All blocks are full but the last. If the last would be a single token, which has no context to be predicted from,
    the block before it gives up one token.

    Args:
        starts, ends: (examples,) in the tokens.

    Returns:
        starts, ends: (spans,) of tokens that are consecutive and in the same block.
        first: (blocks + 1,) the first span of each block.
    """
    gaps = starts[1:] != ends[:-1]
    run_starts, run_ends = starts[np.r_[True, gaps]], ends[np.r_[gaps, True]]
    run_edges = np.r_[0, np.cumsum(run_ends - run_starts)]  # in tokens of the stream
    total = run_edges[-1]
    block_edges = np.r_[np.arange(0, total, block_size), total]
    if total > block_size and total % block_size == 1:
        block_edges[-2] -= 1
    edges = np.union1d(run_edges, block_edges)
    run = np.searchsorted(run_edges, edges[:-1], side="right") - 1
    span_starts = run_starts[run] + edges[:-1] - run_edges[run]
    first = np.asarray(np.searchsorted(edges, block_edges))
    return span_starts, span_starts + np.diff(edges), first


def split_long_examples(starts: np.ndarray, ends: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Split examples that are longer than a block into spans of the block size, none of them a single token.

    Args:
        starts, ends: (examples,) in the tokens.

    Returns:
        starts, ends: (spans,) in the same order.
    """
    lengths = ends - starts
    parts = -(-lengths // block_size)
    last = np.cumsum(parts) - 1
    number = np.arange(parts.sum()) - np.repeat(last - parts + 1, parts)  # of the span in its example
    part_starts = np.repeat(starts, parts) + number * block_size
    part_ends = np.minimum(part_starts + block_size, np.repeat(ends, parts))
    single = last[(lengths > block_size) & (lengths % block_size == 1)]
    part_starts[single] -= 1
    part_ends[single - 1] -= 1
    return part_starts, part_ends


def fill_blocks(starts: np.ndarray, ends: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fill blocks with whole spans, always the longest that fits (best-fit decreasing), so that little padding is left.

    Args:
        starts, ends: (spans,) in the tokens, none longer than a block.

    Returns:
        starts, ends: (spans,) in the order of the blocks.
        first: (blocks + 1,) the first span of each block.
    """
    lengths = ends - starts
    by_length = np.argsort(lengths, kind="stable")
    left = np.bincount(lengths, minlength=block_size + 1).tolist()
    taken = (np.cumsum(left) - left).tolist()  # where in `by_length` the next span of a length is
    available = [length for length, count in enumerate(left) if count]  # lengths of which some are left, ascending
    order, first = [], [0]
    while available:
        free = block_size
        while fitting := bisect_right(available, free):
            length = available[fitting - 1]
            order.append(taken[length])
            taken[length] += 1
            left[length] -= 1
            free -= length
            if not left[length]:
                del available[fitting - 1]
        first.append(len(order))
    spans = by_length[order]
    return starts[spans], ends[spans], np.array(first)
