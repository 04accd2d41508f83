"""Which files of a directory hold the weights, and under which names. All of it without torch."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from gpt2tg.checkpoint.hub import WEIGHT_FILES
from gpt2tg.errors import UserError, one_line
from gpt2tg.io.json_files import read_object
from gpt2tg.io.lfs import refuse_pointer

# The two names under which a model whose head shares its token embedding may store it.
EMBEDDING, HEAD = "wte.weight", "lm_head.weight"

# Modules that wrap another one add a component to the names below them: torch.compile, data parallelism, FSDP,
# activation checkpointing, DeepSpeed. No tensor of a GPT-2 has one of these in its own name.
WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}

# What GPT2Model and GPT2LMHeadModel themselves put before their names.
OWN_PREFIXES = ("", "transformer.")

# The causal masks that old versions of transformers saved with the weights.
MASKS = re.compile(r"(^|\.)(attn|crossattention)\.(masked_)?bias$")

# The longest header that the reader of safetensors accepts.
LONGEST_HEADER = 100_000_000

# One precision of a model among several, as `model.fp16.safetensors`.
VARIANT = re.compile(r"(model|pytorch_model)\.[\w-]+\.(safetensors|bin)")

# Weights in a format that is not read, or shards whose index is missing.
OTHER_FORMATS = (".safetensors", ".bin", ".h5", ".msgpack", ".gguf", ".ot", ".ckpt", ".pt", ".pth", ".onnx")

# What a download that was broken off leaves behind.
UNFINISHED_DOWNLOADS = ("*.incomplete", "*.part", "*.crdownload", ".cache/huggingface/**/*.incomplete")


class WeightFiles(NamedTuple):
    """The files that hold a model's weights."""

    files: list[Path]
    index: dict[str, str]
    """The name of the file that holds a tensor, by the tensor's stored name; empty where one file holds them all."""


def find_weights(directory: Path) -> WeightFiles:
    """The files that hold the weights, in the order of preference of transformers: safetensors first.

    Raises:
        UserError: there are none, a shard is missing, or one of them is a Git LFS pointer.
    """
    index: dict[str, str] = {}
    for file in (directory / name for name in WEIGHT_FILES):
        if file.is_file():
            index = weight_map(file) if file.suffix == ".json" else {}
            files = [directory / name for name in sorted(set(index.values()))] or [file]
            break
    else:
        files = [_only_variant(directory)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(f"{directory} lacks {missing[0]}: the model is not whole{_unfinished(directory)}")
    for file in files:
        refuse_pointer(file)
    return WeightFiles(files, index)


def weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor, by an index of shards. A name of a file cannot lead out of the directory.

    Raises:
        UserError: the index is broken.
    """
    refuse_pointer(index)
    try:
        names = read_object(index)["weight_map"]
        if not names or not all(isinstance(name, str) for name in names.values()):
            raise ValueError("no file for some weights")
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"{index} does not say which file holds which weights: {one_line(error)}") from None
    return {tensor: Path(name).name for tensor, name in names.items()}


def _only_variant(directory: Path) -> Path:
    """The weights where only one variant of them is there.

    Raises:
        UserError: there is none, or a choice to make.
    """
    there = sorted(path.name for path in directory.iterdir() if path.is_file())
    variants = [name for name in there if VARIANT.fullmatch(name) and "index" not in name]
    if len(variants) == 1:
        return directory / variants[0]
    found = ", ".join(variants or [name for name in there if name.endswith(OTHER_FORMATS)])
    raise UserError(
        f"{directory} holds no weights: expected model.safetensors (or pytorch_model.bin)"
        + (f", found {found}{', give one of them that name' if variants else ''}" if found else "")
        + _unfinished(directory)
    )


def _unfinished(directory: Path) -> str:
    """What to add to a message about missing weights where a download was broken off."""
    for pattern in UNFINISHED_DOWNLOADS:
        if found := next(directory.glob(pattern), None):
            return f"; {found.name} is left of a download that was not finished: run it again"
    return ""


def plain_name(stored: str, known: Collection[str]) -> str | None:
    """The tensor that a stored name means, whatever prefix wrappers gave it; None if it is no tensor of a GPT-2.

    Args:
        stored: as `_orig_mod.transformer.h.0.ln_1.weight`.
        known: plain names, as `h.0.ln_1.weight`.
    """
    parts = [part for part in stored.split(".") if part not in WRAPPERS]
    candidates = (".".join(parts[start:]) for start in range(len(parts)))
    return next((name for name in candidates if name in known), None)


def stored_names(stored: Iterable[str], known: Collection[str]) -> dict[str, list[str]]:
    """For each plain name the stored names that mean it. One that transformers itself gives goes before others.

    More than one are left where a file has a tensor twice.
    """
    found: dict[str, list[str]] = {}
    for name in stored:
        if (plain := plain_name(name, known)) is not None:
            found.setdefault(plain, []).append(name)
    for plain, names in found.items():
        found[plain] = [name for name in names if name.removesuffix(plain) in OWN_PREFIXES] or names
    return found


def read_header(file: Path) -> dict[str, dict[str, Any]]:
    """The header of a safetensors file: shape, dtype and place of each tensor by its stored name.

    Raises:
        UserError: the file is truncated or no safetensors.
    """
    try:
        with file.open("rb") as content:
            size = int.from_bytes(content.read(8), "little")
            header = json.loads(content.read(min(size, LONGEST_HEADER)))
        return {name: entry for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is cut or broken: {one_line(error)}") from None
