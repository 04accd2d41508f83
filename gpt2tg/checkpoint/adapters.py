"""LoRA adapters as peft saves them: added to the weights of the model they were trained on.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models". Nothing of peft is needed to read one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2tg.checkpoint.hub import ADAPTER_CONFIG, ADAPTER_PICKLE, ADAPTER_WEIGHTS, WEIGHT_FILES
from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.checkpoint.weight_files import EMBEDDING, HEAD, plain_name, read_header
from gpt2tg.errors import UserError, one_line
from gpt2tg.io.json_files import read_json
from gpt2tg.io.lfs import refuse_pointer

if TYPE_CHECKING:
    from torch import Tensor

# Settings of peft's LoraConfig that may have any value: how the adapter was trained, and what its tensors tell anyhow,
# as which layers it changes and with what rank.
ANY_VALUE = {
    *("peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "inference_mode"),
    *("r", "rank_pattern", "lora_alpha", "use_rslora", "lora_dropout", "fan_in_fan_out", "bias", "modules_to_save"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights", "eva_config"),
    *("megatron_core", "qalora_group_size"),  # have a value where they have no effect, too
}

# Ways to begin that leave the model's own weights as they are. Others, as PiSSA, subtract what the adapter begins with.
PLAIN_BEGINNINGS = (True, False, None, "gaussian", "orthogonal", "eva")

# What peft writes into a setting that is off.
OFF = (None, False, "", [], {})

# The factors of a layer. The name of the adapter stands in some files.
FACTOR = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")

# How peft names a layer that it has wrapped.
WRAPPED = re.compile(r"\.(base_layer|modules_to_save(\.default)?|original_module)(?=\.)")


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter, and no weights of a whole model beside it."""
    return (directory / ADAPTER_CONFIG).is_file() and not any((directory / name).is_file() for name in WEIGHT_FILES)


def base_name(directory: Path) -> str:
    """The model that an adapter was trained on: a name of the hub, or a directory.

    Raises:
        UserError: the adapter does not say.
    """
    name = _config(directory).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise UserError(f"{directory / ADAPTER_CONFIG} does not name the model it was trained on")
    return name


def embedding_rows(directory: Path) -> int | None:
    """Rows of the token embedding that an adapter brings along, where its vocabulary is larger than its model's.

    Raises:
        UserError: the adapter's file is broken.
    """
    file = adapter_file(directory)
    if file.suffix == ".bin":  # is not looked into without torch
        return None
    for name, entry in read_header(file).items():
        if plain_name(WRAPPED.sub("", name), (EMBEDDING,)):
            rows = entry["shape"][0] if isinstance(entry.get("shape"), list) and entry["shape"] else None
            return rows if isinstance(rows, int) else None
    return None


def adapter_file(directory: Path) -> Path:
    """The file with an adapter's tensors.

    Raises:
        UserError: it is missing, or a Git LFS pointer.
    """
    for name in (ADAPTER_WEIGHTS, ADAPTER_PICKLE):
        if (directory / name).is_file():
            refuse_pointer(directory / name)
            return directory / name
    raise UserError(f"{directory / ADAPTER_WEIGHTS} is cut, broken or missing: the adapter is not whole")


def add_adapter(
    weights: Iterable[tuple[str, Tensor]], directory: Path, shape: ModelShape
) -> Iterator[tuple[str, Tensor]]:
    """The weights of a model, those of an adapter added in fp32 where it has any, or put in their place.

    A head that the model shares with the token embedding comes last where the adapter makes the two differ.

    Args:
        weights: by their plain names, `h.0.attn.c_attn.weight`; linear layers are (in, out), as GPT-2 has them.
        shape: of the model with the adapter.

    Raises:
        UserError: another kind of adapter, one of another model, or a broken file.
    """
    return _changed(weights, _read_adapter(directory, shape))


def _changed(weights: Iterable[tuple[str, Tensor]], adapter: _Adapter) -> Iterator[tuple[str, Tensor]]:
    parts_ways = adapter.changes(EMBEDDING) or adapter.changes(HEAD)
    embedding = shared = None
    for name, weight in weights:
        changed = adapter.change(name, weight)
        if name == EMBEDDING and parts_ways:
            embedding, shared = changed, weight
        if name == HEAD:
            shared = None
        yield name, changed
    if embedding is not None and shared is not None:
        head = adapter.change(HEAD, shared)
        if not head.float().equal(embedding.float()):
            yield HEAD, head
    adapter.check_all_used()


@dataclass
class _Adapter:
    """What an adapter holds, by the plain names of the weights that it changes."""

    directory: Path
    config: dict[str, Any]
    sizes: dict[str, tuple[int, ...]]
    """Of all weights of the model with the adapter."""
    factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """(r, in) and (out, r)."""
    replaced: dict[str, Tensor] = field(default_factory=dict)

    def changes(self, name: str) -> bool:
        """Whether the adapter changes this weight."""
        return name in self.factors or name in self.replaced

    def change(self, name: str, weight: Tensor) -> Tensor:
        """A weight of the model as the adapter has it. Each can be asked for once."""
        weight = self.replaced.pop(name, weight)
        if name in self.factors:
            down, up = self.factors.pop(name)
            product = self._scale(len(down)) * (up @ down)
            product = product if name == HEAD else product.T
            if product.shape != weight.shape:
                raise self._misfit(name)
            weight = weight.float() + product
        if (shape := tuple(weight.shape)) != self.sizes[name]:
            raise self._misfit(f"{name} of the shape {shape}")
        return weight

    def check_all_used(self) -> None:
        """Refuse an adapter that changes weights which the model does not have."""
        for name in (*self.factors, *self.replaced):
            raise self._misfit(name)

    def _scale(self, rank: int) -> float:
        return self.config.get("lora_alpha", 8) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _misfit(self, name: str) -> UserError:
        return UserError(f"{self.directory}: {name} does not fit the model {self.config['base_model_name_or_path']}")


def _read_adapter(directory: Path, shape: ModelShape) -> _Adapter:
    from gpt2tg.checkpoint.tensor_files import is_finite, open_tensors

    sizes = dict(shape.tensors())
    adapter = _Adapter(directory, _config(directory), {HEAD: sizes[EMBEDDING], **sizes})
    halves: dict[str, dict[str, Tensor]] = {}
    file = open_tensors(adapter_file(directory))
    for stored in file.shapes:
        factor = FACTOR.fullmatch(stored)
        name = plain_name(WRAPPED.sub("", f"{factor[1]}.weight" if factor else stored), adapter.sizes)
        if factor and name is None:
            raise UserError(f"{directory}: {stored} does not fit the model {adapter.config['base_model_name_or_path']}")
        if name is None or file.unreadable_type(stored):
            raise UserError(f"{file.file} holds something else than LoRA weights, which cannot be read: {stored}")
        tensor = file.read(stored)
        if not is_finite(tensor):
            raise UserError(f"{file.file}: {stored} holds numbers that are not finite: the adapter is broken")
        if factor:
            halves.setdefault(name, {})[factor[2]] = tensor.float()
        else:
            adapter.replaced[name] = tensor
    for name, pair in halves.items():
        down, up = pair.get("A"), pair.get("B")
        if down is None or up is None or down.dim() != 2 or up.dim() != 2 or len(down) != up.shape[1]:
            raise UserError(f"{file.file} holds something else than LoRA weights: not both factors of {name}")
        adapter.factors[name] = down, up
    if not adapter.factors:
        raise UserError(f"{file.file} holds something else than LoRA weights: there are no factors")
    return adapter


def _refuse_unknown_settings(config: dict[str, Any], directory: Path) -> None:
    """An adapter is read if every setting is known to be right; whatever else is on is refused by its name."""
    if config.get("peft_type") != "LORA":
        raise UserError(f"{directory} is a {config.get('peft_type')} adapter: only LoRA can be read")
    refused = {name: value for name, value in config.items() if name not in ANY_VALUE and value not in OFF}
    if refused.get("revision") == "main":  # that is what is read
        del refused["revision"]
    if (beginning := config.get("init_lora_weights")) not in PLAIN_BEGINNINGS:
        refused["init_lora_weights"] = beginning
    for name, value in refused.items():
        raise UserError(
            f"{directory} is a LoRA adapter with {name} {one_line(value, 80)}, which cannot be read: merge it into its "
            "model with peft (merge_and_unload), and give the directory of the merged model"
        )


def _config(directory: Path) -> dict[str, Any]:
    config = read_json(directory / ADAPTER_CONFIG)
    if not isinstance(config.get("lora_alpha", 1), (int, float)):
        raise UserError(f"{directory / ADAPTER_CONFIG} is no adapter's config")
    _refuse_unknown_settings(config, directory)
    return config
