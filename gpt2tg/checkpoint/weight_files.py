"""Find the files that hold a model's weights. Nothing here needs torch."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from gpt2tg.checkpoint.file_names import WEIGHT_FILES
from gpt2tg.errors import UserError, one_line
from gpt2tg.io.json_files import read_object
from gpt2tg.io.lfs import refuse_pointer

# The longest header, in bytes, that the safetensors library accepts.
LONGEST_HEADER = 100_000_000

# One precision among several, such as `model.fp16.safetensors`.
VARIANT = re.compile(r"(model|pytorch_model)\.[\w-]+\.(safetensors|bin)")

# Suffixes of weights that we may not be able to read: other formats, other names, or shards without their index.
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".h5", ".msgpack", ".gguf", ".ot", ".ckpt", ".pt", ".pth", ".onnx")

# Files that an interrupted download leaves behind.
UNFINISHED_DOWNLOADS = ("*.incomplete", "*.part", "*.crdownload", ".cache/huggingface/**/*.incomplete")


class WeightFiles(NamedTuple):
    """The files that hold a model's weights: one file, or several shards."""

    files: list[Path]
    shards: dict[str, str]
    """The file name of the shard for each stored tensor name; empty if the weights are not sharded."""


def find_weights(directory: Path) -> WeightFiles:
    """Return the files that hold the weights. Like transformers, prefer safetensors to pickles.

    Raises:
        UserError: there are no weights, a shard is missing, or the index is broken.
    """
    shards: dict[str, str] = {}
    for file in (directory / name for name in WEIGHT_FILES):
        if file.is_file():
            shards = weight_map(file) if file.suffix == ".json" else {}
            files = [directory / name for name in sorted(set(shards.values()))] or [file]
            break
    else:
        files = [_only_variant(directory)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(
            f"{directory}: {missing[0]} is missing: the model is incomplete{_unfinished(directory)}. "
            "Copy or download the model again"
        )
    return WeightFiles(files, shards)


def weight_map(index: Path) -> dict[str, str]:
    """Return the file name of the shard for each tensor, as an index of shards lists them.

    Only the last component of a path counts, so that no name leads out of the directory.

    Raises:
        UserError: the index is broken, or a Git LFS pointer.
    """
    refuse_pointer(index)
    try:
        names = read_object(index)["weight_map"]
        if not names or not all(isinstance(name, str) for name in names.values()):
            raise ValueError("some weights have no file name")
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        raise UserError(
            f"{index} does not list a file for every tensor ({one_line(error)}): copy or download it again"
        ) from None
    return {tensor: Path(name).name for tensor, name in names.items()}


def _only_variant(directory: Path) -> Path:
    """Return the only variant of the weights, such as `model.fp16.safetensors`.

    Raises:
        UserError: there is no variant, or more than one.
    """
    names = sorted(path.name for path in directory.iterdir() if path.is_file())
    variants = [name for name in names if VARIANT.fullmatch(name) and "index" not in name]
    if len(variants) == 1:
        return directory / variants[0]
    found = ", ".join(variants or [name for name in names if name.endswith(WEIGHT_SUFFIXES)])
    raise UserError(
        f"{directory} holds no weights: expected model.safetensors (or pytorch_model.bin)"
        + (f", found {found}" if found else "")
        + (". Rename the one to use to model.safetensors or pytorch_model.bin" if variants else "")
        + _unfinished(directory)
    )


def _unfinished(directory: Path) -> str:
    """Return an addition to an error about missing weights if a download was interrupted, else an empty string."""
    for pattern in UNFINISHED_DOWNLOADS:
        if found := next(directory.glob(pattern), None):
            return f"; {found.name} is left from a download that was not finished: run it again"
    return ""


def read_header(file: Path) -> dict[str, dict[str, Any]]:
    """Return the header of a safetensors file: dtype, shape and byte range of each tensor, by its stored name.

    Raises:
        UserError: the file is truncated, or not in the safetensors format.
    """
    try:
        with file.open("rb") as content:
            size = int.from_bytes(content.read(8), "little")
            header = json.loads(content.read(min(size, LONGEST_HEADER)))
        return {name: entry for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is truncated or broken ({one_line(error)}): copy or download it again") from None
