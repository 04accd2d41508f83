"""How much memory a training step takes, by arithmetic: from the shape of the model and the options alone.

Counted are the tensors that torch keeps, in bytes per token as they were found by profiling a step. What a GPU needs
for itself, about half a gigabyte, comes on top, and so does what the allocator cannot use.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from gpt2tg.checkpoint.find import ModelShape
from gpt2tg.options import TrainingOptions
from gpt2tg.training.model import loss

FULL, HALF = 4, 2  # bytes of a number

# Bytes per trained weight that an optimizer keeps: AdamW two moments, plain descent nothing.
OPTIMIZER_BYTES = {"adamw_torch_fused": 8, "adamw_torch": 8, "sgd": 0}


@dataclass(frozen=True)
class Memory:
    """Bytes by what they are for."""

    weights: int
    gradients: int
    optimizer: int
    activations: int  # kept by the forward pass for the backward pass
    loss: int  # logits, a piece of the rows at a time, and the gradients made of them, at their largest
    layer: int  # the largest that a single layer or weight needs while gradients are made
    accumulates: bool  # gradients, or their buffers, are there during the forward pass too

    @property
    def peak(self) -> int:
        """The most at any time: when the loss is computed, or when the last gradients are made."""
        at_loss = self.activations + self.loss + (self.gradients if self.accumulates else 0)
        return self.weights + self.optimizer + max(at_loss, self.gradients + self.layer)

    def __str__(self) -> str:
        parts = {name: getattr(self, name) for name in ("weights", "gradients", "optimizer", "activations", "loss")}
        return f"{gigabytes(self.peak)} ({', '.join(f'{name} {gigabytes(size)}' for name, size in parts.items())})"


def gigabytes(size: float) -> str:
    """Bytes as a person reads them: 7.2 GB, 40 MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def estimate(shape: ModelShape, options: TrainingOptions, fused_attention: bool = True, processes: int = 1) -> Memory:
    """What the largest moment of a training step holds, in each process.

    Args:
        fused_attention: attention never holds a matrix of tokens by tokens. On a CPU that is so without dropout only.
        processes: of several, each keeps the buffers in which gradients travel. The gradients lie in them.
    """
    tokens = options.batch_size * options.block_size
    half = options.bf16 or options.fp16
    frozen_in_half = half and options.lora
    trained = sum(math.prod(size) for size in trained_weights(shape, options))
    total = sum(math.prod(size) for _, size in shape.tensors())
    layers = shape.n_layer - options.freeze_layers
    casts = 0 if frozen_in_half or not half else HALF * _layer_weights(shape)
    head_cast = HALF * shape.vocab_size * shape.n_embd if half and not frozen_in_half else 0
    layer = tokens * _layer_bytes(shape, options, half, fused_attention) + casts
    residual = tokens * shape.n_embd * (HALF if frozen_in_half else FULL)
    at_loss = _loss_bytes(shape, options, half)
    if options.gradient_checkpointing:  # layers are cast to 16 bits in the forward pass too, and forgotten after it
        activations, at_loss = layers * residual + head_cast, at_loss + layers * casts
    else:
        activations = layers * layer + head_cast
    activations += residual + tokens * shape.n_embd * (FULL + HALF if half else FULL)  # the last layer norm
    return Memory(
        weights=total * (HALF if frozen_in_half else FULL) + (FULL * trained if options.lora else 0),
        gradients=FULL * trained,
        optimizer=sum(_optimizer_bytes(size, options.optim) for size in trained_weights(shape, options)),
        activations=activations,
        loss=at_loss,
        layer=max(layer, 0 if options.lora or options.freeze_layers else FULL * shape.vocab_size * shape.n_embd),
        accumulates=options.gradient_accumulation_steps > 1 or processes > 1,
    )


def trained_weights(shape: ModelShape, options: TrainingOptions) -> Iterator[tuple[int, ...]]:
    """The sizes of all tensors that a step changes."""
    for name, size in shape.tensors():
        layer = int(name.split(".")[1]) if name.startswith("h.") else None
        if options.lora:
            if name.endswith(".weight") and name.split(".")[-2] in options.lora_targets and len(size) == 2:
                yield size[0], options.lora_rank
                yield options.lora_rank, size[1]
        elif not options.freeze_layers or name.startswith("ln_f") or (layer or 0) >= options.freeze_layers:
            yield size


def checkpoint_bytes(shape: ModelShape, options: TrainingOptions) -> int:
    """A checkpoint on disk: the weights, or the adapter alone, and what the optimizer keeps."""
    trained = list(trained_weights(shape, options))
    saved = trained if options.lora else [size for _, size in shape.tensors()]
    return FULL * sum(map(math.prod, saved)) + sum(_optimizer_bytes(size, options.optim) for size in trained)


def _layer_weights(shape: ModelShape) -> int:
    return sum(math.prod(size) for name, size in shape.tensors() if name.startswith("h.0.") and ".ln_" not in name)


def _layer_bytes(shape: ModelShape, options: TrainingOptions, half: bool, fused_attention: bool) -> int:
    """What one layer keeps for each token."""
    width, inner, heads = shape.n_embd, shape.n_inner, shape.n_head
    # Into each of two layer norms (in full) and out of it; queries, keys, values, what attention gives; around the GELU
    kept = 20 * width + 4 * inner if half else 32 * width + 8 * inner
    kept += 4 * heads + 16  # one number a head, and two a layer norm
    if options.dropout == 0:
        return kept
    if fused_attention:
        return kept + 2 * width  # what was dropped, a byte each
    return kept + (10 if half else 12) * width + 12 * heads * options.block_size


def _loss_bytes(shape: ModelShape, options: TrainingOptions, half: bool) -> int:
    """What the loss needs besides the hidden states: see loss.py, whose pieces these are."""
    tokens, width = options.batch_size * options.block_size, shape.n_embd
    number = HALF if half else FULL
    piece, is_first = min(tokens, loss.ROWS) * shape.vocab_size, tokens <= loss.ROWS
    head = 0 if options.lora or options.freeze_layers else width * shape.vocab_size
    kept = number * tokens * width + (0 if is_first else FULL * head)  # gradients so far
    probabilities = 2 * FULL * piece  # and the logits that they are made of
    errors = (FULL + HALF if half else FULL) * piece
    added = number * piece + (HALF + FULL if half else FULL if is_first else 0) * head
    return kept + max(probabilities, errors, added)


def _optimizer_bytes(size: tuple[int, ...], optim: str) -> int:
    if optim == "adafactor":  # of a matrix, a mean for each row and each column
        return FULL * (sum(size) if len(size) == 2 else size[0])
    return OPTIMIZER_BYTES[optim] * math.prod(size)


def remedies(shape: ModelShape, options: TrainingOptions, fused_attention: bool = True) -> list[tuple[str, Memory]]:
    """Flags that lower the memory, each with what it leads to, the most effective first."""
    found: list[tuple[str, TrainingOptions]] = []
    if options.batch_size > 1:
        steps = options.batch_size * options.gradient_accumulation_steps
        found.append(
            (
                f"--batch_size 1 --gradient_accumulation_steps {steps}",
                replace(options, batch_size=1, gradient_accumulation_steps=steps),
            )
        )
    if not options.gradient_checkpointing:
        found.append(("--gradient_checkpointing", replace(options, gradient_checkpointing=True)))
    if not options.lora and not options.from_scratch and not options.freeze_layers:
        found.append(("--lora", replace(options, lora=True)))
    if not options.bf16 and not options.fp16:
        found.append(("--bf16", replace(options, bf16=True)))
    if options.optim != "adafactor" and not options.lora:
        found.append(("--optim adafactor", replace(options, optim="adafactor")))
    if options.block_size > 128:
        shorter = options.block_size // 2
        found.append((f"--block_size {shorter}", replace(options, block_size=shorter)))
    now = estimate(shape, options, fused_attention).peak
    ranked = [(flags, estimate(shape, changed, fused_attention)) for flags, changed in found]
    return sorted((entry for entry in ranked if entry[1].peak < now), key=lambda entry: entry[1].peak)


def smaller_batches(options: TrainingOptions) -> TrainingOptions | None:
    """Half the batch or less, and as many blocks a step as before; None where it is one already."""
    blocks = options.batch_size * options.gradient_accumulation_steps
    for size in range(options.batch_size // 2, 0, -1):
        if blocks % size == 0:
            return replace(options, batch_size=size, gradient_accumulation_steps=blocks // size)
    return None


def out_of_memory(shape: ModelShape, options: TrainingOptions, available: float | None, fused_attention: bool) -> str:
    """What to say when memory ran out: how much is needed, how much there is, and what to change.

    Args:
        available: bytes of the device, where they are known.
    """
    there = f", and {gigabytes(available)} are there" if available else ""
    ways = [f"{flags} (then {gigabytes(memory.peak)})" for flags, memory in remedies(shape, options, fused_attention)]
    advice = f"; most effective first: {', '.join(ways)}" if ways else "; a smaller model would fit"
    if options.batch_size > 1 and not options.auto_batch_size:
        advice += "; --auto_batch_size finds a batch that fits by itself, also with --resume"
    return f"out of memory: a step takes about {estimate(shape, options, fused_attention)}{there}{advice}"
