"""LoRA adapters as peft saves them: added to the weights of the model they were trained on.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models". Nothing of peft is needed to read one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2tg.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# peft wraps the model twice before its own names begin.
PREFIX = "base_model.model."

# Settings under which an adapter is more than a low-rank product, and what they are when it is not.
PLAIN = {"use_dora": False, "bias": "none", "modules_to_save": None, "alpha_pattern": {}, "rank_pattern": {}}


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter, and no weights of a whole model beside it."""
    whole = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    return (directory / ADAPTER_CONFIG).is_file() and not any((directory / name).is_file() for name in whole)


def base_name(directory: Path) -> str:
    """The model that an adapter was trained on: a name of the hub, or a directory.

    Raises:
        UserError: the adapter does not say.
    """
    name = _config(directory).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise UserError(f"{directory / ADAPTER_CONFIG} does not name the model it was trained on")
    return name


def add_adapter(weights: Iterable[tuple[str, Tensor]], directory: Path) -> Iterator[tuple[str, Tensor]]:
    """The weights of a model, those of an adapter added in fp32 where it has any.

    Args:
        weights: by their plain names, `h.0.attn.c_attn.weight`; linear layers are (in, out), as GPT-2 has them.

    Raises:
        UserError: another kind of adapter, one of another model, or a broken file.
    """
    config = _config(directory)
    if config.get("peft_type") != "LORA":
        raise UserError(f"{directory} is a {config.get('peft_type')} adapter: only LoRA can be read")
    for name, plain in PLAIN.items():
        if config.get(name, plain) not in (plain, None, {}, []):
            raise UserError(f"{directory} is a LoRA adapter with {name} {config[name]}, which cannot be read")
    factors = _factors(directory)
    for name, weight in weights:
        if name in factors:
            down, up = factors.pop(name)  # (r, in), (out, r)
            if (down.shape[1], up.shape[0]) != tuple(weight.shape):
                raise UserError(f"{directory}: {name} does not fit the model {config['base_model_name_or_path']}")
            weight = weight.float() + _scale(config, len(down)) * (up @ down).T
        yield name, weight
    for name in factors:
        raise UserError(f"{directory}: {name} does not fit the model {config['base_model_name_or_path']}")


def _factors(directory: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """The two matrices for each weight that the adapter changes."""
    found = _read(directory / ADAPTER_WEIGHTS)
    factors = {}
    for key in found:
        layer, is_down, _ = key.partition(".lora_A.weight")
        if is_down and (up := found.get(f"{layer}.lora_B.weight")) is not None:
            name = layer.removeprefix(PREFIX).removeprefix("transformer.") + ".weight"
            factors[name] = (found[key].float(), up.float())
    if not factors or 2 * len(factors) != len(found):
        raise UserError(f"{directory / ADAPTER_WEIGHTS} holds something else than LoRA weights")
    return factors


def _scale(config: dict[str, Any], rank: int) -> float:
    return config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _config(directory: Path) -> dict[str, Any]:
    path = directory / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("lora_alpha", 1), (int, float)):
        raise UserError(f"{path} is no adapter's config")
    return config


def _read(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is cut, broken or missing: {error}") from None
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(f"{file}: {name} holds numbers that are not finite: the adapter is broken")
    return tensors
