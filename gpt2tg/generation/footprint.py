"""Estimate the memory that a batch of texts needs, and refuse one that is too large before allocating it."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from gpt2tg.engine.model import GPT2
from gpt2tg.errors import UserError
from gpt2tg.options import DecodingOptions

# (V,) float32 arrays per text that a decode step holds at once: logits, log-probabilities and filtered scores.
VOCABULARY_ARRAYS = 3

# The memory limit of a Linux container: control groups version 2, then version 1.
CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def check_footprint(model: GPT2, options: DecodingOptions, prompts: int, new_tokens: int, batch_size: int = 1) -> None:
    """Refuse a batch that needs more memory than the device has.

    Args:
        prompts: the number of prompts in the batch.
        new_tokens: the largest number of new tokens of a text.
        batch_size: the value of the option that led to so many prompts, for messages.

    Raises:
        UserError: names the option that asks for the most texts.
    """
    if options.strategy.beams and options.num_beams > model.shape.vocab_size:
        raise UserError(
            f"{options.num_beams} is more than the {model.shape.vocab_size} tokens of the model's vocabulary: lower it",
            "num_beams",
        )
    texts, option = _texts_per_prompt(model, options)
    value = batch_size if prompts > texts else getattr(options, option)
    option = "batch_size" if prompts > texts else option
    needed, available = prompts * texts * bytes_per_text(model, new_tokens), device_bytes(model.device)
    if prompts * texts > 1 and needed > available:
        raise UserError(
            f"{value}: a batch of {prompts * texts} texts needs about {needed / 1e9:,.0f} GB of memory, and the "
            f"device has {available / 1e9:,.0f} GB: lower it",
            option,
        )


def _texts_per_prompt(model: GPT2, options: DecodingOptions) -> tuple[int, str]:
    """Return the number of rows that a prompt needs, and the option that determines it."""
    if options.strategy.beams:
        return options.num_beams, "num_beams"
    if options.decoding == "contrastive":
        return min(options.effective_top_k or 1, model.shape.vocab_size), "top_k"
    return options.draws, "num_sequences" if options.draws == options.sequences else "best_of"


def bytes_per_text(model: GPT2, new_tokens: int) -> int:
    """Return the bytes that a text needs: its logits in a decode step, and the KV cache of its new tokens."""
    shape, cached = model.shape, min(new_tokens, model.shape.n_positions)
    bytes_per_number = 4 if model.precision == "fp32" else 2
    return VOCABULARY_ARRAYS * 4 * shape.vocab_size + 2 * shape.n_layer * shape.n_embd * cached * bytes_per_number


def device_bytes(device: torch.device) -> int:
    """Return the memory of a GPU, or that of the machine or container."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = [path.read_text().strip() for path in CONTAINER_LIMITS if path.is_file()]
    return min([int(psutil.virtual_memory().total), *(int(limit) for limit in limits if limit.isdecimal())])
