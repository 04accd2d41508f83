"""The size of an optimizer's state, from the shapes of the weights that it updates."""

from __future__ import annotations

import math
from collections.abc import Iterable

from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.options import TrainingOptions

FP32 = 4  # bytes per number

# Moments per weight: numbers that the optimizer keeps for each weight. Muon keeps one for a matrix of a layer.
MOMENTS = {
    "adamw_torch_fused": 2, "adamw_torch": 2, "adamw_anyprecision": 2, "stable_adamw": 2, "paged_adamw_32bit": 2,
    "adamw_bnb_8bit": 2, "adamw_8bit": 2, "paged_adamw_8bit": 2, "adamw_torch_8bit": 2, "adamw_torch_4bit": 2,
    "schedule_free_adamw": 2, "schedule_free_radam": 2, "schedule_free_sgd": 1,
    "lion_32bit": 1, "paged_lion_32bit": 1, "lion_8bit": 1, "paged_lion_8bit": 1,
    "ademamix": 3, "paged_ademamix_32bit": 3, "ademamix_8bit": 3, "paged_ademamix_8bit": 3,
    "adagrad": 1, "rmsprop": 1, "rmsprop_bnb": 1, "rmsprop_bnb_32bit": 1, "rmsprop_bnb_8bit": 1,
    "sgd": 0, "muon": 2,
}  # fmt: skip

# Bytes of a quantized moment; each block of so many has a scale in fp32.
QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.5}
QUANTIZED_BLOCK = 256
# Smaller weights have moments in fp32.
LEAST_QUANTIZED = 4096


def optimizer_bytes(shape: ModelShape, trained: Iterable[tuple[int, ...]], options: TrainingOptions) -> int:
    """Return the size of the optimizer's state.

    Args:
        trained: the size of each weight that a step updates.
    """
    name = options.optim
    if name == "adafactor":  # a mean for each row and each column of a matrix
        return FP32 * sum(sum(size) if len(size) == 2 else size[0] for size in trained)
    embeddings = {(count, shape.n_embd) for count in (shape.vocab_size, shape.n_positions)}
    return round(sum(_bytes(name, size, size in embeddings, _more_moments(options)) for size in trained))


def _bytes(name: str, size: tuple[int, ...], is_embedding: bool, more: int) -> float:
    """Return the size of one weight's state."""
    weights, moments = math.prod(size), MOMENTS[name] + more
    if name == "muon" and len(size) == 2 and not is_embedding:
        return FP32 * weights
    # transformers tells bitsandbytes to keep the moments of embeddings in fp32.
    is_small = weights < LEAST_QUANTIZED or (is_embedding and not name.startswith("adamw_torch"))
    quantized = next((size for kind, size in QUANTIZED_BYTES.items() if name.endswith(kind)), None)
    if quantized is None or is_small:
        return FP32 * weights * moments
    return (quantized + FP32 / QUANTIZED_BLOCK) * weights * moments


def _more_moments(options: TrainingOptions) -> int:
    """Return how many further moments `--trainer optim_args=...` asks for."""
    found = 0
    for entry in options.trainer:
        field, _, text = entry.partition("=")
        if field != "optim_args":
            continue
        given = dict(part.partition("=")[::2] for part in text.replace(" ", "").split(","))
        if options.optim in ("sgd", "rmsprop"):
            found += given.get("momentum", "0").strip("0.") != ""
        if options.optim == "rmsprop":
            found += given.get("centered", "").lower() in ("true", "1", "yes")
    return found
