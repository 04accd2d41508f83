"""Add the weights of a LoRA adapter to those of its model.

LoRA: Hu et al. 2021. Scaling by the root of the rank (rsLoRA): Kalajdzievski 2023. Decomposition of a weight into
magnitude and direction (DoRA): Liu et al. 2024. peft writes the files, but reading them does not need it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gpt2tg.checkpoint.adapters import adapter_file, read_adapter_config, token_rows
from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.checkpoint.tensor_files import TensorFile, is_finite, open_tensors
from gpt2tg.checkpoint.tensor_names import EMBEDDING, HEAD, plain_adapter_name
from gpt2tg.errors import UserError

# A part of an adapter: a factor of an update, the magnitudes of DoRA, or embeddings of single tokens. Some files
# contain the name of the adapter, "default".
PART = re.compile(
    r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|token_adapter\.trainable_tokens_delta)"
    r"(\.default)?(\.weight)?"
)

# peft's default of LoraConfig.lora_alpha.
DEFAULT_ALPHA = 8

# What peft puts before the names of a model's modules.
PEFT_PREFIX = "base_model.model."


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
class _Update:
    """The low-rank update of one weight."""

    a: Tensor
    """(r, in)"""
    b: Tensor
    """(out, r)"""
    scale: float
    magnitude: Tensor | None = None
    """(out,) the norm of the weights of each output, for DoRA."""

    def apply(self, weight: Tensor, by_output: bool) -> Tensor | None:
        """Return the updated weight in fp32; None if the shapes do not fit.

        Args:
            by_output: whether the weight has the shape (out, in); else (in, out).
        """
        update = self.scale * (self.b @ self.a)
        update = update if by_output else update.T
        if update.shape != weight.shape:
            return None
        changed: Tensor = weight.float() + update
        return changed if self.magnitude is None else with_magnitude(changed, self.magnitude, by_output)


def with_magnitude(weight: Tensor, magnitude: Tensor, by_output: bool) -> Tensor:
    """Return a weight with the norm that DoRA gives to the weights of each output.

    Args:
        magnitude: (out,)
        by_output: whether the weight has the shape (out, in); else (in, out).
    """
    factor: Tensor = magnitude / torch.linalg.vector_norm(weight, dim=1 if by_output else 0)
    return weight * (factor[:, None] if by_output else factor)


@dataclass
class _Adapter:
    """The tensors of an adapter by the plain names of the weights that they change."""

    directory: Path
    config: dict[str, Any]
    sizes: dict[str, tuple[int, ...]]
    """The shape of every weight of the model with the adapter."""
    updates: dict[str, _Update] = field(default_factory=dict)
    replaced: dict[str, Tensor] = field(default_factory=dict)
    """Weights that take the place of the model's."""
    rows: dict[str, tuple[list[int], Tensor]] = field(default_factory=dict)
    """Token ids, and the rows that take the place of theirs."""

    def changes(self, name: str) -> bool:
        """Whether the adapter changes this weight."""
        return name in self.updates or name in self.replaced or name in self.rows

    def change(self, name: str, weight: Tensor) -> Tensor:
        """Return a weight of the model with the adapter applied. The adapter's own tensors are then released."""
        weight = self.replaced.pop(name, weight)
        if name in self.updates:
            updated = self.updates.pop(name).apply(weight, by_output=name == HEAD)
            if updated is None:
                raise self.misfit(name)
            weight = updated
        if name in self.rows:
            weight = self._with_rows(name, weight)
        if (shape := tuple(weight.shape)) != self.sizes[name]:
            raise self.misfit(f"{name} of the shape {shape}")
        return weight

    def _with_rows(self, name: str, weight: Tensor) -> Tensor:
        """Return an embedding with the rows of single tokens replaced. Tokens that the model lacks are appended."""
        ids, values = self.rows.pop(name)
        added = self.sizes[name][0] - len(weight)
        if values.shape != (len(ids), weight.shape[1]) or not {*range(len(weight), self.sizes[name][0])} <= {*ids}:
            raise self.misfit(f"{name} of {len(ids)} tokens")
        extended = functional.pad(weight.float(), (0, 0, 0, max(added, 0)))
        return extended.index_copy(0, torch.tensor(ids), values.float())

    def check_all_used(self) -> None:
        """Refuse an adapter that changes weights which the model does not have."""
        for name in (*self.updates, *self.replaced, *self.rows):
            raise self.misfit(name)

    def misfit(self, what: str) -> UserError:
        """Return the error for a tensor that does not fit the model."""
        base = self.config.get("base_model_name_or_path")
        return UserError(
            f"{self.directory}: {what} does not fit the model: the adapter was trained on {base}, as its "
            "adapter_config.json says. Give that model"
        )

    def scale(self, module: str, rank: int) -> float:
        """Return the factor of the update of one layer.

        Args:
            module: the name of the layer, such as `transformer.h.0.attn.c_attn`.
        """
        patterns = self.config.get("alpha_pattern") or {}
        matching = (alpha for pattern, alpha in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module))
        alpha = float(next(matching, self.config.get("lora_alpha", DEFAULT_ALPHA)))
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


def _read_adapter(directory: Path, shape: ModelShape) -> _Adapter:
    """Read the tensors of an adapter.

    Raises:
        UserError: one of them is not finite, belongs to no weight of GPT-2, or is no part of LoRA.
    """
    sizes = dict(shape.tensors())
    adapter = _Adapter(directory, read_adapter_config(directory), {HEAD: sizes[EMBEDDING], **sizes})
    file = open_tensors(adapter_file(directory))
    parts: dict[str, dict[str, Tensor]] = {}
    modules: dict[str, str] = {}
    for stored in file.shapes:
        part = PART.fullmatch(stored)
        name = plain_adapter_name(f"{part[1]}.weight" if part else stored, adapter.sizes)
        if part and name is None:
            raise adapter.misfit(stored)
        if name is None or file.unreadable_type(stored):
            raise _not_lora(file, stored)
        tensor = _read_finite(file, stored)
        if part:
            parts.setdefault(name, {})[part[2].rpartition(".")[2].replace("embedding_", "")] = tensor.float()
            modules[name] = part[1].removeprefix(PEFT_PREFIX)
        else:
            adapter.replaced[name] = tensor
    for name, found in parts.items():
        _add_parts(adapter, name, modules[name], found, file)
    if not parts:
        raise _not_lora(file, "no LoRA factors")
    if not token_rows(adapter.config, directory).keys() <= adapter.rows.keys():
        raise _not_lora(file, "no trainable_tokens_delta, although trainable_token_indices names tokens")
    if EMBEDDING in adapter.rows and shape.tied:
        adapter.rows.setdefault(HEAD, adapter.rows[EMBEDDING])
    return adapter


def _read_finite(file: TensorFile, stored: str) -> Tensor:
    tensor = file.read(stored)
    if not is_finite(tensor):
        raise UserError(
            f"{file.file}: {stored} holds numbers that are not finite: the adapter is broken. "
            "Use an earlier checkpoint or another copy"
        )
    return tensor


def _add_parts(adapter: _Adapter, name: str, module: str, parts: dict[str, Tensor], file: TensorFile) -> None:
    """Add what the parts of one layer change to an adapter.

    Raises:
        UserError: a part is missing, or parts do not match each other.
    """
    ids = token_rows(adapter.config, adapter.directory).get(name)
    if (values := parts.pop("trainable_tokens_delta", None)) is not None:
        if ids is None:
            raise _not_lora(file, f"rows of {name} without trainable_token_indices that name their tokens")
        adapter.rows[name] = ids, values
    if not parts:
        return
    a, b, magnitude = (parts.get(part) for part in ("lora_A", "lora_B", "lora_magnitude_vector"))
    if a is None or b is None or a.dim() != 2 or b.dim() != 2 or len(a) != b.shape[1]:
        raise _not_lora(file, f"two factors of {name} that do not match")
    if (magnitude is not None) != (adapter.config.get("use_dora") is True):
        raise _not_lora(file, f"{name} {'with' if magnitude is not None else 'without'} lora_magnitude_vector")
    if magnitude is not None and magnitude.shape != (len(b),):
        raise _not_lora(file, f"lora_magnitude_vector of {name} of the shape {tuple(magnitude.shape)}")
    adapter.updates[name] = _Update(a, b, adapter.scale(module, len(a)), magnitude)


def _not_lora(file: TensorFile, found: str) -> UserError:
    return UserError(
        f"{file.file} holds {found}: only LoRA weights are supported. Merge the adapter into its model with peft "
        "(merge_and_unload), and give the directory of the merged model"
    )
