"""Add the weights of a LoRA adapter to those of its model.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models". peft writes the files, but reading them does not
need it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from gpt2tg.checkpoint.adapters import adapter_file, read_adapter_config
from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.checkpoint.tensor_files import TensorFile, is_finite, open_tensors
from gpt2tg.checkpoint.tensor_names import EMBEDDING, HEAD, plain_adapter_name
from gpt2tg.errors import UserError

# The two factors of a layer's update. Some files contain the name of the adapter, "default".
FACTOR = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")

# peft's default of LoraConfig.lora_alpha.
DEFAULT_ALPHA = 8


def add_adapter(
    weights: Iterable[tuple[str, Tensor]], directory: Path, shape: ModelShape
) -> Iterator[tuple[str, Tensor]]:
    """Return the weights of a model with an adapter applied, in fp32 where the adapter changes them.

    If the model shares its head with the token embedding and the adapter makes them different, the head comes last.

    Args:
        weights: the model's weights by their plain names, such as `h.0.attn.c_attn.weight`. Linear layers have the
            shape (in, out), as in GPT-2.
        directory: the directory of the adapter.
        shape: the shape of the model with the adapter.

    Raises:
        UserError: the adapter is of another kind or for another model, or its file is broken. A tensor that does not
            fit the model is found only when that tensor is reached.
    """
    return _apply(weights, _read_adapter(directory, shape))


def _apply(weights: Iterable[tuple[str, Tensor]], adapter: _Adapter) -> Iterator[tuple[str, Tensor]]:
    may_untie = adapter.changes(EMBEDDING) or adapter.changes(HEAD)
    embedding = original = None
    for name, weight in weights:
        changed = adapter.change(name, weight)
        if name == EMBEDDING and may_untie:
            embedding, original = changed, weight
        if name == HEAD:
            original = None
        yield name, changed
    if embedding is not None and original is not None:
        head = adapter.change(HEAD, original)
        if not head.float().equal(embedding.float()):
            yield HEAD, head
    adapter.check_all_used()


@dataclass
class _Adapter:
    """The tensors of an adapter by the plain names of the weights that they change."""

    directory: Path
    config: dict[str, Any]
    sizes: dict[str, tuple[int, ...]]
    """The shape of every weight of the model with the adapter."""
    factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """A of shape (r, in), and B of shape (out, r)."""
    replaced: dict[str, Tensor] = field(default_factory=dict)
    """Weights that take the place of the model's."""

    def changes(self, name: str) -> bool:
        """Whether the adapter changes this weight."""
        return name in self.factors or name in self.replaced

    def change(self, name: str, weight: Tensor) -> Tensor:
        """Return a weight of the model with the adapter applied. The adapter's own tensors are then released."""
        weight = self.replaced.pop(name, weight)
        if name in self.factors:
            a, b = self.factors.pop(name)
            update = self._scale(len(a)) * (b @ a)
            update = update if name == HEAD else update.T
            if update.shape != weight.shape:
                raise self.misfit(name)
            weight = weight.float() + update
        if (shape := tuple(weight.shape)) != self.sizes[name]:
            raise self.misfit(f"{name} of the shape {shape}")
        return weight

    def check_all_used(self) -> None:
        """Refuse an adapter that changes weights which the model does not have."""
        for name in (*self.factors, *self.replaced):
            raise self.misfit(name)

    def misfit(self, what: str) -> UserError:
        """Return the error for a tensor that does not fit the model."""
        base = self.config["base_model_name_or_path"]
        return UserError(
            f"{self.directory}: {what} does not fit the model {base}: check base_model_name_or_path in its "
            "adapter_config.json"
        )

    def _scale(self, rank: int) -> float:
        alpha = float(self.config.get("lora_alpha", DEFAULT_ALPHA))
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


def _read_adapter(directory: Path, shape: ModelShape) -> _Adapter:
    sizes = dict(shape.tensors())
    adapter = _Adapter(directory, read_adapter_config(directory), {HEAD: sizes[EMBEDDING], **sizes})
    file = open_tensors(adapter_file(directory))
    halves: dict[str, dict[str, Tensor]] = {}
    for stored in file.shapes:
        factor = FACTOR.fullmatch(stored)
        name = plain_adapter_name(f"{factor[1]}.weight" if factor else stored, adapter.sizes)
        if factor and name is None:
            raise adapter.misfit(stored)
        if name is None or file.unreadable_type(stored):
            raise _not_lora(file, stored)
        tensor = file.read(stored)
        if not is_finite(tensor):
            raise UserError(
                f"{file.file}: {stored} holds numbers that are not finite: the adapter is broken. "
                "Use an earlier checkpoint or another copy"
            )
        if factor:
            halves.setdefault(name, {})[factor[2]] = tensor.float()
        else:
            adapter.replaced[name] = tensor
    for name, half in halves.items():
        a, b = half.get("A"), half.get("B")
        if a is None or b is None or a.dim() != 2 or b.dim() != 2 or len(a) != b.shape[1]:
            raise _not_lora(file, f"two factors of {name} that do not match")
        adapter.factors[name] = a, b
    if not adapter.factors:
        raise _not_lora(file, "no LoRA factors")
    return adapter


def _not_lora(file: TensorFile, found: str) -> UserError:
    return UserError(
        f"{file.file} holds {found}: only LoRA weights are supported. Merge the adapter into its model with peft "
        "(merge_and_unload), and give the directory of the merged model"
    )
