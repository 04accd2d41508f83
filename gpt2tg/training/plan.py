"""What a run would do, before it does it: its size, its memory, its time, and the blocks as the model sees them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2tg.checkpoint.find import ModelShape
from gpt2tg.checkpoint.tokenizer import TextStream, TextTokenizer
from gpt2tg.options import TrainingOptions
from gpt2tg.training.callbacks import duration
from gpt2tg.training.data.advice import counted
from gpt2tg.training.data.blocks import NO_LOSS
from gpt2tg.training.data.training_data import TrainingData
from gpt2tg.training.devices import synchronize, undisturbed_randomness
from gpt2tg.training.model.build import for_training
from gpt2tg.training.model.lora import choose_weights
from gpt2tg.training.model.memory_estimate import checkpoint_bytes, estimate_memory, format_bytes

# Around what carries no loss.
MARKS = ("⟦", "⟧")


def plan(
    options: TrainingOptions,
    config: GPT2Config,
    shape: ModelShape,
    data: TrainingData,
    device: torch.device,
    processes: int = 1,
) -> Iterator[str]:
    """The plan of a run, a line each; its memory is that of one process."""
    steps, epoch = (count(options, len(data.train), processes) for count in (total_steps, steps_per_epoch))
    blocks = 0 if data.validation is None else len(data.validation)
    held_out = f", {counted(data.validation_examples, 'example')} held out" if blocks else ", none held out"
    yield f"examples: {data.train_examples:,} to learn from{held_out}"
    yield f"tokens: {data.train_tokens:,} to learn from, {data.padding:.1%} of the blocks is padding"
    yield f"blocks: {len(data.train):,} of {options.block_size} tokens, {blocks:,} held out"
    step_blocks = processes * options.batch_size * options.gradient_accumulation_steps
    yield f"steps: {steps:,} of {counted(step_blocks, 'block')}"
    measured = measured_steps(options, steps, epoch) if blocks else set()
    size, kept = checkpoint_bytes(shape, options), most_checkpoints(options, steps, measured)
    yield f"checkpoints: {kept:,} at most, of {format_bytes(size)}, in all {format_bytes(kept * size)} on disk"
    memory = estimate_memory(shape, options, fused_attention(config, options, device), processes)
    yield f"memory: about {memory} at its peak, libraries not counted"
    pace = measure_pace(options, config, device)
    # The first of the measurements is made before training.
    batches = (len(measured) + 1) * math.ceil(blocks / (options.batch_size * processes))
    seconds = steps * pace.step(options) + batches * pace.forward
    yield f"time: about {duration(seconds)} on {device.type}"


def steps_per_epoch(options: TrainingOptions, blocks: int, processes: int = 1) -> int:
    """Steps in one round over the blocks; the last batch may be short."""
    batches = math.ceil(math.ceil(blocks / options.batch_size) / processes)
    return math.ceil(batches / options.gradient_accumulation_steps)


def total_steps(options: TrainingOptions, blocks: int, processes: int = 1) -> int:
    """Steps of the whole run, as the Trainer counts them."""
    return options.max_steps or math.ceil(options.epochs * steps_per_epoch(options, blocks, processes))


def measured_steps(options: TrainingOptions, steps: int, epoch: int) -> set[int]:
    """The steps after which the validation loss is measured, where an epoch has so many."""
    between = options.eval_steps or steps
    return {*range(epoch, steps + 1, epoch), *range(between, steps + 1, between), steps}


def most_checkpoints(options: TrainingOptions, steps: int, measured: set[int]) -> int:
    """How many checkpoints are left at the end, where each measurement was the best so far; over the limit, one was."""
    saved = len({*range(options.save_steps, steps + 1, options.save_steps), *measured, steps})
    if not options.save_total_limit:
        return saved
    return min(saved, options.save_total_limit + bool(measured))


def fused_attention(config: GPT2Config, options: TrainingOptions, device: torch.device) -> bool:
    """Whether torch computes attention without holding a matrix of tokens by tokens."""
    dropout = config.attn_pdrop if options.dropout is None else options.dropout
    return device.type == "cuda" or not dropout


@dataclass(frozen=True)
class Pace:
    """Seconds of a forward pass over a batch, of the pass back, and of the optimizer."""

    forward: float
    backward: float
    update: float

    def step(self, options: TrainingOptions) -> float:
        """Seconds of a step."""
        return (self.forward + self.backward) * options.gradient_accumulation_steps + self.update


def measure_pace(options: TrainingOptions, config: GPT2Config, device: torch.device) -> Pace:
    """Time models of one trained layer and of two on random tokens: what the second adds, each further layer will.

    Where layers are frozen, one stands below for all of them: they take part in the forward pass alone.
    """
    frozen = min(options.freeze_layers, 1)
    small = replace(options, freeze_layers=frozen)
    one, two = (_time(small, config, frozen + trained, device) for trained in (1, 2))
    trained = config.n_layer - options.freeze_layers
    further = (config.n_layer - frozen - 1, trained - 1, trained - 1)
    times = [max(a + more * max(b - a, 0.0), 0.0) for a, b, more in zip(one, two, further, strict=True)]
    return Pace(*times)


def _time(options: TrainingOptions, config: GPT2Config, layers: int, device: torch.device) -> list[float]:
    """The shortest times of some steps: forward, backward, update."""
    small = GPT2Config.from_dict({**config.to_dict(), "n_layer": layers, "use_cache": False})
    with undisturbed_randomness():
        model = choose_weights(for_training(GPT2LMHeadModel(small)), options, "-").to(device).train()
        ids = torch.randint(small.vocab_size, (options.batch_size, options.block_size), device=device)
        optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], fused=True)
        half = torch.bfloat16 if options.bf16 else torch.float16 if options.fp16 and device.type == "cuda" else None

        def forward() -> torch.Tensor:
            with torch.autocast(device.type, half, enabled=half is not None):
                return model(input_ids=ids, labels=ids).loss

        times = []
        for _ in range(4):
            loss, seconds = _timed(forward, device)
            _, back = _timed(loss.backward, device)
            _, update = _timed(optimizer.step, device)
            optimizer.zero_grad()
            times.append((seconds, back + (seconds if options.gradient_checkpointing else 0), update))
    return [min(column) for column in zip(*times[1:], strict=True)]


def _timed(work: Callable[[], object], device: torch.device) -> tuple[object, float]:
    started = time.perf_counter()
    result = work()
    synchronize(device)
    return result, time.perf_counter() - started


def show_blocks(data: TrainingData, tokenizer: TextTokenizer, options: TrainingOptions) -> Iterator[str]:
    """The first blocks as text, what carries no loss between marks; examples apart where they do not see each other."""
    for number in range(min(options.show_blocks, len(data.train))):
        row = data.train[number]
        ids = row["input_ids"].tolist()
        labels = row["labels"].tolist() if "labels" in row else list(ids)
        labels[0] = NO_LOSS  # nothing comes before it
        learned = sum(label != NO_LOSS for label in labels)
        padding = options.block_size - len(ids)
        marks = "".join(MARKS)
        yield f"block {number}: {len(ids)} tokens, {learned} carry loss, those in {marks} do not; {padding} padding"
        starts = [i for i, place in enumerate(row.get("position_ids", range(len(ids)))) if place == 0]
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            yield "".join(_stretches(ids[start:end], labels[start:end], tokenizer))


def _stretches(ids: list[int], labels: list[int], tokenizer: TextTokenizer) -> Iterator[str]:
    stream = TextStream(tokenizer, marks=tokenizer.special)
    places = zip(ids, (label == NO_LOSS for label in labels), strict=True)
    for is_context, stretch in groupby(places, key=itemgetter(1)):
        text = "".join([stream.push(token) for token, _ in stretch]) + stream.finish()
        yield text.join(MARKS) if is_context else text
