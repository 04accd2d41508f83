"""Write a model as a directory of transformers: config.json, tokenizer and one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2tg.checkpoint.checkpoint import Checkpoint
from gpt2tg.checkpoint.file_names import WEIGHT_FILES
from gpt2tg.checkpoint.saving import save_weights
from gpt2tg.checkpoint.tensor_names import EMBEDDING, HEAD
from gpt2tg.export.source import Source
from gpt2tg.io.json_files import read_json

TYPES = {"fp32": torch.float32, "fp16": torch.float16}


def write_directory(directory: Path, source: Source, precision: str) -> None:
    """Write a model that transformers can load into an empty directory. Rows that pad the embedding are left out.

    Args:
        precision: `fp32` or `fp16`.

    Raises:
        UserError: the weights are broken, or have values too large for fp16.
    """
    kind, rows = TYPES[precision], source.used_ids[-1] + 1
    source.save_tokenizer(directory)
    has_head = False

    def shortened() -> Iterator[tuple[str, Tensor]]:
        nonlocal has_head
        for name, tensor in source.weights:
            has_head |= name == HEAD
            yield name, tensor[:rows] if name in (EMBEDDING, HEAD) else tensor

    save_weights(directory / WEIGHT_FILES[0], shortened(), kind)
    config = {
        **_config(source.checkpoint),
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": rows,
        "tie_word_embeddings": not has_head,
        "dtype": str(kind).removeprefix("torch."),
    }
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (directory / "config.json").write_text(text, encoding="utf-8")


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the config.json of a model; that of the base model if an adapter has none."""
    while checkpoint.base is not None and not (checkpoint.directory / "config.json").is_file():
        checkpoint = checkpoint.base
    config = read_json(checkpoint.directory / "config.json")
    return {name: value for name, value in config.items() if name not in ("torch_dtype", "_name_or_path")}
