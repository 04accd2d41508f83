"""Write the weights of a GPT-2 as transformers does."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from gpt2tg.checkpoint.tensor_files import is_finite
from gpt2tg.checkpoint.tensor_names import HEAD
from gpt2tg.errors import UserError
from gpt2tg.io.atomic import sync


def save_weights(file: Path, weights: Iterable[tuple[str, Tensor]], kind: torch.dtype = torch.float32) -> None:
    """Write weights to a safetensors file, and sync it to the disk.

    Args:
        weights: the tensors by their plain names, such as `h.0.ln_1.weight`.
        kind: the type to store them in.

    Raises:
        UserError: a value is too large for the type.
    """
    stored = {
        name if name == HEAD else f"transformer.{name}": in_type(name, tensor, kind).contiguous()
        for name, tensor in weights
    }
    save_file(stored, file, metadata={"format": "pt"})
    sync(file)


def in_type(name: str, tensor: Tensor, kind: torch.dtype) -> Tensor:
    """Return a tensor in another type.

    Raises:
        UserError: a value is too large for the type.
    """
    converted = tensor.to(kind)
    if kind == torch.float16 and not is_finite(converted):
        raise UserError(f"fp16 cannot hold the values of {name}: use fp32", "precision")
    return converted
