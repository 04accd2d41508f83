"""Plan a run before it starts: the lines that --dry_run prints, and the numbers behind them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from transformers import GPT2Config

from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.options import TrainingOptions
from gpt2tg.training.data.advice import counted
from gpt2tg.training.data.training_data import TrainingData
from gpt2tg.training.model.memory_estimate import KeptAttention, checkpoint_bytes, estimate_memory, format_bytes
from gpt2tg.training.stopwatch import format_duration
from gpt2tg.training.timing import measure_step_times


def plan(
    options: TrainingOptions,
    config: GPT2Config,
    shape: ModelShape,
    data: TrainingData,
    device: torch.device,
    processes: int = 1,
) -> Iterator[str]:
    """Yield the lines of the plan; the memory is that of one process.

    Args:
        config: the model's config, and `shape` the same as the engine reads it.
        processes: how many processes train.
    """
    steps, epoch_steps = (count(options, len(data.train), processes) for count in (total_steps, steps_per_epoch))
    blocks = 0 if data.validation is None else len(data.validation)
    held_out = f", {counted(data.validation_examples, 'example')} held out" if blocks else ", none held out"
    yield f"examples: {data.train_examples:,} to learn from{held_out}"
    yield f"tokens: {data.train_tokens:,} to learn from, {data.padding:.1%} of the blocks is padding"
    yield f"blocks: {len(data.train):,} of {options.block_size} tokens, {blocks:,} held out"
    step_blocks = processes * options.batch_size * options.gradient_accumulation_steps
    yield f"steps: {steps:,} of {counted(step_blocks, 'block')}"
    evaluated = evaluated_steps(options, steps, epoch_steps) if blocks else set()
    size, kept = checkpoint_bytes(shape, options), most_checkpoints(options, steps, evaluated)
    yield f"checkpoints: {kept:,} at most, of {format_bytes(size)}, in all {format_bytes(kept * size)} on disk"
    memory = estimate_memory(shape, options, kept_attention(config, options, device), processes)
    yield f"memory: about {memory} at its peak, libraries not counted"
    times = measure_step_times(options, config, device)
    batches = math.ceil(blocks / (options.batch_size * processes))
    evaluations = len(evaluated) + 1  # one before training
    seconds = steps * times.step(options) + evaluations * batches * times.forward
    yield f"time: about {format_duration(seconds)} on {device.type}"


def steps_per_epoch(options: TrainingOptions, blocks: int, processes: int = 1) -> int:
    """Return the optimizer steps in one epoch over the blocks; the last batch may be short."""
    batches = math.ceil(math.ceil(blocks / options.batch_size) / processes)
    return math.ceil(batches / options.gradient_accumulation_steps)


def total_steps(options: TrainingOptions, blocks: int, processes: int = 1) -> int:
    """Return the optimizer steps of the whole run, as the Trainer counts them."""
    return options.max_steps or math.ceil(options.epochs * steps_per_epoch(options, blocks, processes))


def evaluated_steps(options: TrainingOptions, steps: int, epoch_steps: int) -> set[int]:
    """Return the steps after which the validation loss is computed, given the steps of the run and of an epoch."""
    interval = options.eval_steps or steps
    return {*range(epoch_steps, steps + 1, epoch_steps), *range(interval, steps + 1, interval), steps}


def most_checkpoints(options: TrainingOptions, steps: int, evaluated: set[int]) -> int:
    """Return the most checkpoints that can be left at the end: those left if each evaluation was a new best.

    With `save_total_limit` the best one is kept in addition.
    """
    saved = len({*range(options.save_steps, steps + 1, options.save_steps), *evaluated, steps})
    if not options.save_total_limit:
        return saved
    return min(saved, options.save_total_limit + bool(evaluated))


def kept_attention(config: GPT2Config, options: TrainingOptions, device: torch.device) -> KeptAttention:
    """Return what attention keeps for the backward pass: nothing where torch's fused kernel is used."""
    dropout = config.attn_pdrop if options.dropout is None else options.dropout
    ours = device.type == "cpu" and options.compile != "on"
    if device.type == "cuda" or not (dropout or (ours and options.bf16)):
        return "none"
    return "chunks" if ours else "whole"
