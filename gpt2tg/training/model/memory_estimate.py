"""Estimate the memory of a training step from the shape of the model and the options.

Counted are the tensors that torch keeps; the bytes per token were found by profiling training steps. A GPU needs about
half a gigabyte more for itself, and the allocator wastes some.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.checkpoint.tensor_names import EMBEDDING
from gpt2tg.options import TrainingOptions
from gpt2tg.training.model import loss
from gpt2tg.training.model.cpu_speedups import mean_keys
from gpt2tg.training.model.optimizer_memory import FP32, optimizer_bytes

HALF = 2  # bytes per number
# Bytes per weight in 4 bits: of 64 weights the scale has 8 bits, and of 256 scales the scale has 32.
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)

# What attention keeps of the matrices of tokens by tokens for the backward pass: nothing; the part up to each query, as
# `CausalAttention` does; or all, as torch does with dropout outside CUDA GPUs.
KeptAttention = Literal["none", "chunks", "whole"]

# Memory of other processes up to this many bytes is no reason for running out; our own driver needs some too.
LITTLE = 1e9


@dataclass(frozen=True)
class MemoryEstimate:
    """The bytes of a training step, by use."""

    weights: int
    gradients: int
    optimizer: int
    activations: int  # saved by the forward pass for the backward pass
    loss: int  # the logits of a chunk of rows and the gradients computed from them, at their largest
    layer: int  # the most that one layer, or one weight, needs during the backward pass
    keeps_gradients: bool  # whether gradients, or their buffers, exist during the forward pass too

    @property
    def peak(self) -> int:
        """The most bytes at any time: when the loss is computed, or when the last gradients are."""
        at_loss = self.activations + self.loss + (self.gradients if self.keeps_gradients else 0)
        return self.weights + self.optimizer + max(at_loss, self.gradients + self.layer)

    def __str__(self) -> str:
        parts = {name: getattr(self, name) for name in ("weights", "gradients", "optimizer", "activations", "loss")}
        return (
            f"{format_bytes(self.peak)} ({', '.join(f'{name} {format_bytes(size)}' for name, size in parts.items())})"
        )


def format_bytes(size: float) -> str:
    """Return a size for messages: 7.2 GB, 40 MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def estimate_memory(
    shape: ModelShape, options: TrainingOptions, attention: KeptAttention = "none", processes: int = 1
) -> MemoryEstimate:
    """Estimate the memory of each process in a training step.

    Args:
        processes: several keep buffers in which gradients are exchanged. The gradients are views of these buffers.
    """
    half = options.bf16 or options.fp16
    trained = sum(math.prod(size) for size in trained_weights(shape, options))
    layers, casts = shape.n_layer - options.freeze_layers, _cast_bytes(shape, options, half)
    layer = options.batch_size * options.block_size * _layer_bytes(shape, options, half, attention) + casts
    # With gradient checkpointing, the forward pass casts the layers too, and frees them when the loss is computed.
    forward_casts = layers * casts if options.gradient_checkpointing else 0
    # Gradients in the backward pass of `CausalAttention`: of queries, keys, values, output and scores.
    number = HALF if half else FP32
    buffers = 0 if attention == "none" else 6 * number * options.batch_size * options.block_size * shape.n_embd
    embedding = 0 if _freezes_embedding(options) else FP32 * shape.vocab_size * shape.n_embd
    return MemoryEstimate(
        weights=_weight_bytes(shape, options, half) + (FP32 * trained if options.lora else 0),
        gradients=FP32 * trained,
        optimizer=optimizer_bytes(shape, trained_weights(shape, options), options),
        activations=_activation_bytes(shape, options, half, layer),
        loss=_loss_bytes(shape, options, half) + forward_casts,
        layer=max(layer + buffers, embedding),
        keeps_gradients=options.gradient_accumulation_steps > 1 or processes > 1,
    )


def _weight_bytes(shape: ModelShape, options: TrainingOptions, half: bool) -> int:
    """Return the size of the model's weights, without an adapter."""
    total = sum(math.prod(size) for _, size in shape.tensors())
    in_4_bits = sum(shape.n_layer * count for count in _layer_matrices(shape)) if options.load_in_4bit else 0
    return (total - in_4_bits) * (HALF if half and options.lora else FP32) + int(in_4_bits * NF4)


def _activation_bytes(shape: ModelShape, options: TrainingOptions, half: bool, layer: int) -> int:
    """Return the bytes saved by the forward pass.

    Args:
        layer: bytes that one layer saves.
    """
    tokens = options.batch_size * options.block_size
    layers = shape.n_layer - options.freeze_layers
    frozen_in_half = half and options.lora
    head_cast = HALF * shape.vocab_size * shape.n_embd if half and not frozen_in_half else 0
    residual = tokens * shape.n_embd * (HALF if frozen_in_half else FP32)
    last_norm = residual + tokens * shape.n_embd * (FP32 + HALF if half else FP32)
    with_new_rows = (HALF if half else FP32) * shape.vocab_size * shape.n_embd if options.add_tokens else 0
    saved = head_cast + last_norm + (with_new_rows if options.lora else 0)
    return layers * (residual if options.gradient_checkpointing else layer) + saved


def _cast_bytes(shape: ModelShape, options: TrainingOptions, half: bool) -> int:
    """Return the size of one layer's weights cast to 16 bits; 0 if they are not cast."""
    return HALF * _layer_weights(shape) if half and not options.lora else 0


def _freezes_embedding(options: TrainingOptions) -> bool:
    """Whether the embedding has no gradients. An adapter that trains rows of new tokens needs those of all rows."""
    return bool(options.freeze_layers or (options.lora and not options.add_tokens))


def trained_weights(shape: ModelShape, options: TrainingOptions) -> Iterator[tuple[int, ...]]:
    """Yield the size of each tensor that a step updates."""
    for name, size in shape.tensors():
        layer = int(name.split(".")[1]) if name.startswith("h.") else None
        if options.lora:
            if name.endswith(".weight") and name.split(".")[-2] in options.adapted_layers and len(size) == 2:
                yield size[0], options.lora_rank
                yield options.lora_rank, size[1]
                if options.use_dora:
                    yield (size[1],)
            elif name == EMBEDDING and options.add_tokens:
                yield len(options.add_tokens), size[1]
        elif not options.freeze_layers or name.startswith("ln_f") or (layer or 0) >= options.freeze_layers:
            yield size


def checkpoint_bytes(shape: ModelShape, options: TrainingOptions) -> int:
    """Return the size of a checkpoint on disk: the weights, or only the adapter, and the optimizer's state."""
    saved = trained_weights(shape, options) if options.lora else (size for _, size in shape.tensors())
    state = optimizer_bytes(shape, trained_weights(shape, options), options)
    return FP32 * sum(map(math.prod, saved)) + state


def _layer_matrices(shape: ModelShape) -> list[int]:
    """Return the number of weights in each matrix of a layer."""
    return [math.prod(size) for name, size in shape.tensors() if name.startswith("h.0.") and len(size) == 2]


def _layer_weights(shape: ModelShape) -> int:
    """Return the number of weights in a layer that autocast casts to 16 bits."""
    return sum(math.prod(size) for name, size in shape.tensors() if name.startswith("h.0.") and ".ln_" not in name)


def _layer_bytes(shape: ModelShape, options: TrainingOptions, half: bool, attention: KeptAttention) -> int:
    """Return what one layer saves per token."""
    width, inner, heads = shape.n_embd, shape.n_inner, shape.n_head
    # Inputs (fp32) and outputs of two layer norms; queries, keys, values and the attention's output; around the GELU.
    saved = 20 * width + 4 * inner if half else 32 * width + 8 * inner
    saved += 4 * heads + 16  # one number per head, and two per layer norm
    saved += (HALF if half else FP32) * _adapter_outputs(shape, options)
    has_dropout = options.dropout != 0  # None is the model's own, usually 0.1
    if attention == "none":
        return saved + 2 * width * has_dropout  # dropout masks, one byte per element
    number = HALF if half else FP32
    if attention == "whole":  # per pair in fp32 the weight, what dropout leaves of it and a mask; and a mask of a byte
        return saved + 2 * number * width + (3 * FP32 + 1) * heads * options.block_size
    # In place of the number per head, the weights. With dropout also what it leaves of them, and masks of numbers.
    weights = heads * mean_keys(options.block_size)
    return saved - 4 * heads + number * (2 * weights + 2 * width if has_dropout else weights)


def _adapter_outputs(shape: ModelShape, options: TrainingOptions) -> int:
    """Return how many numbers the adapters of one layer save per token."""
    if not options.lora:
        return 0
    outputs = {"c_attn": [3 * shape.n_embd], "c_proj": [shape.n_embd] * 2, "c_fc": [shape.n_inner]}
    sizes = [size for name in options.adapted_layers for size in outputs[name]]
    # For the gradient of DoRA's magnitudes, the outputs of the layer and of its adapter.
    return options.lora_rank * len(sizes) + (2 * sum(sizes) if options.use_dora else 0)


def _loss_bytes(shape: ModelShape, options: TrainingOptions, half: bool) -> int:
    """Return what loss.py needs besides the hidden states, for its chunks of rows."""
    tokens, width = options.batch_size * options.block_size, shape.n_embd
    number = HALF if half else FP32
    chunk, is_single = min(tokens, loss.ROWS) * shape.vocab_size, tokens <= loss.ROWS
    head = 0 if _freezes_embedding(options) else width * shape.vocab_size
    gradients_so_far = number * tokens * width + (0 if is_single else FP32 * head)
    probabilities = 2 * FP32 * chunk  # and the logits that they are computed from
    logit_gradient = (FP32 + HALF if half else FP32) * chunk
    product = number * chunk + (HALF + FP32 if half else FP32 if is_single else 0) * head
    return gradients_so_far + max(probabilities, logit_gradient, product)


def remedies(
    shape: ModelShape, options: TrainingOptions, attention: KeptAttention = "none"
) -> list[tuple[str, MemoryEstimate]]:
    """Return flags that lower the memory, each with the estimate under it, the most effective first."""
    now = estimate_memory(shape, options, attention).peak
    changes = [(flags, estimate_memory(shape, changed, attention)) for flags, changed in _changes(options)]
    return sorted((change for change in changes if change[1].peak < now), key=lambda change: change[1].peak)


def _changes(options: TrainingOptions) -> Iterator[tuple[str, TrainingOptions]]:
    """Yield flags that may lower the memory, with the options under them."""
    if options.batch_size > 1:
        steps = options.batch_size * options.gradient_accumulation_steps
        flags = f"--batch_size 1 --gradient_accumulation_steps {steps}"
        yield flags, replace(options, batch_size=1, gradient_accumulation_steps=steps)
    if not options.gradient_checkpointing:
        yield "--gradient_checkpointing", replace(options, gradient_checkpointing=True)
    if not options.lora and not options.from_scratch and not options.freeze_layers:
        yield "--lora", replace(options, lora=True)
    if not options.bf16 and not options.fp16:
        yield "--bf16", replace(options, bf16=True)
    if options.optim != "adafactor" and not options.lora:
        yield "--optim adafactor", replace(options, optim="adafactor")
    if options.block_size > 128:
        shorter = options.block_size // 2
        yield f"--block_size {shorter}", replace(options, block_size=shorter)


def smaller_batches(options: TrainingOptions) -> TrainingOptions | None:
    """Return options with half the batch size or less and as many blocks per step; None if the batch size is 1."""
    blocks = options.batch_size * options.gradient_accumulation_steps
    for size in range(options.batch_size // 2, 0, -1):
        if blocks % size == 0:
            return replace(options, batch_size=size, gradient_accumulation_steps=blocks // size)
    return None


def out_of_memory(
    shape: ModelShape, options: TrainingOptions, available: float | None, attention: KeptAttention, taken: float = 0
) -> str:
    """Return the message for a run out of memory: how much a step takes, how much there is, and what to change.

    Args:
        available: bytes of the device, if known.
        taken: bytes of it that other processes use.
    """
    of_device = f", the device has {format_bytes(available)}" if available else ""
    if taken > LITTLE:
        of_device += f", of which other processes use {format_bytes(taken)}"
    ways = [f"{flags} (then {format_bytes(memory.peak)})" for flags, memory in remedies(shape, options, attention)]
    advice = f"; most effective first: {', '.join(ways)}" if ways else "; take a smaller model"
    if options.batch_size > 1 and not options.auto_batch_size:
        advice += "; --auto_batch_size finds a batch size that fits, also with --resume"
    return f"out of memory: a step takes about {estimate_memory(shape, options, attention)}{of_device}{advice}"
