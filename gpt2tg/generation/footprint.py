"""How much memory texts take that are written side by side, by arithmetic: too many are refused before any is taken."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from gpt2tg.engine.model import GPT2
from gpt2tg.errors import UserError
from gpt2tg.options import DecodingOptions

# Arrays of a step that hold a number for each token of the vocabulary: logits, log-probabilities, scores.
VOCABULARY_ARRAYS = 3

# Where Linux says how much memory a container may take, in the two forms that there are.
CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def check_footprint(model: GPT2, options: DecodingOptions, prompts: int, new_tokens: int, batch_size: int = 1) -> None:
    """Refuse more texts side by side than the device could ever hold.

    Args:
        prompts: how many are continued side by side.
        new_tokens: of the longest text.
        batch_size: what asked for so many prompts.

    Raises:
        UserError: names the option that asks for most of them.
    """
    if options.strategy.beams and options.num_beams > model.shape.vocab_size:
        raise UserError(
            f"{options.num_beams} is more than the {model.shape.vocab_size} tokens of the model's vocabulary: lower it",
            "num_beams",
        )
    texts, option = _texts_of_a_prompt(model, options)
    value = batch_size if prompts > texts else getattr(options, option)
    option = "batch_size" if prompts > texts else option
    needed, held = prompts * texts * bytes_of_a_text(model, new_tokens), device_bytes(model.device)
    if prompts * texts > 1 and needed > held:
        raise UserError(
            f"{value}: {prompts * texts} texts side by side take about {needed / 1e9:,.0f} GB, and there are "
            f"{held / 1e9:,.0f} GB here: lower it",
            option,
        )


def _texts_of_a_prompt(model: GPT2, options: DecodingOptions) -> tuple[int, str]:
    """How many texts a prompt has at a time, and the option that says so."""
    if options.strategy.beams:
        return options.num_beams, "num_beams"
    if options.decoding == "contrastive":
        return min(options.effective_top_k or 1, model.shape.vocab_size), "top_k"
    return options.draws, "num_sequences" if options.draws == options.sequences else "best_of"


def bytes_of_a_text(model: GPT2, new_tokens: int) -> int:
    """What a text takes: its logits of a step, and keys and values of its new tokens."""
    shape, cached = model.shape, min(new_tokens, model.shape.n_positions)
    bytes_of_a_number = 4 if model.precision == "fp32" else 2
    return VOCABULARY_ARRAYS * 4 * shape.vocab_size + 2 * shape.n_layer * shape.n_embd * cached * bytes_of_a_number


def device_bytes(device: torch.device) -> int:
    """The memory of a GPU, or of the machine as far as this process may take it."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limits = [path.read_text().strip() for path in CONTAINER_LIMITS if path.is_file()]
    return min([psutil.virtual_memory().total, *(int(limit) for limit in limits if limit.isdecimal())])
