"""Copy a trained model into the package: python -m gpt2tg.training.bundle DIRECTORY

The weights are stored as 16-bit floats, which halves their size. Generation computes with them in 32 bits.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from gpt2tg.checkpoint.chat_template import stored_template
from gpt2tg.checkpoint.checkpoint import read_checkpoint
from gpt2tg.checkpoint.find import BUNDLED_DIRECTORY
from gpt2tg.errors import UserError
from gpt2tg.training.model.build import existing_model
from gpt2tg.training.model.new_tokenizer import transformers_tokenizer
from gpt2tg.training.output.layout import make_readable

# The dropout in the stored config, for those who fine-tune the model; its own training may have used another.
USUAL_DROPOUT = 0.1


def bundle(source: Path, target: Path = BUNDLED_DIRECTORY) -> None:
    """Copy a checkpoint with its weights in 16 bits."""
    model, tokenizer = existing_model(read_checkpoint(source), dropout=USUAL_DROPOUT)
    torch.nn.Module.to(model, torch.float16)  # transformers' own `to` is annotated wrongly
    model.save_pretrained(target)
    template = stored_template(source)
    transformers_tokenizer(tokenizer, model.config.n_positions, template).save_pretrained(target)
    make_readable(target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m gpt2tg.training.bundle",
        usage=argparse.SUPPRESS,  # so that an error is one line
        description="Copy a model into gpt2tg.",
    )
    parser.add_argument("directory", type=Path, help="the model to copy")
    try:
        bundle(parser.parse_args().directory)
    except (UserError, OSError) as error:
        parser.exit(2, f"bundle: error: {error}\n")
