"""Puts a trained model into the package: python -m gpt2tg.training.bundle DIRECTORY

The weights are stored as 16-bit floats, which halves their size; they are computed with in 32 bits again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from gpt2tg.engine.checkpoints import BUNDLED_DIRECTORY
from gpt2tg.options import TrainingOptions
from gpt2tg.training.directory import make_readable
from gpt2tg.training.model import existing_model, transformers_tokenizer


def bundle(source: Path, target: Path = BUNDLED_DIRECTORY) -> None:
    """Copy a checkpoint, its weights in 16 bits."""
    model, tokenizer = existing_model(source, TrainingOptions())
    model.to(torch.float16).save_pretrained(target)
    transformers_tokenizer(tokenizer, model.config.n_positions).save_pretrained(target)
    make_readable(target)


if __name__ == "__main__":
    bundle(Path(sys.argv[1]))
