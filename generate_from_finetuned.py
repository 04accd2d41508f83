#!/usr/bin/env python3
"""Generate text from a fine-tuned model: checkpoint directory in, text out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from gpt2tg import cli
from gpt2tg.commands.dispatch import generate_or_inspect
from gpt2tg.commands.flags import Flags
from gpt2tg.commands.loading import ModelChoice
from gpt2tg.commands.session import SessionCommand, session
from gpt2tg.errors import UserError
from gpt2tg.options import (
    AdapterOptions,
    CheckpointOptions,
    DecodingOptions,
    DeviceOptions,
    DraftOptions,
    InspectionOptions,
    ModelPathOptions,
    PrecisionOptions,
    PromptOptions,
    RevisionOptions,
    SessionOptions,
)

EXAMPLES = """\
examples:
  python generate_from_finetuned.py --model_path ./fine_tuned_model --decoding top_p
  python generate_from_finetuned.py --model_path ./fine_tuned_model --prompt "The dragon" --num_sequences 5 --seed 7
  python generate_from_finetuned.py --model_path ./fine_tuned_model --decoding beam --no_repeat_ngram 2
  python generate_from_finetuned.py --model_path ./fine_tuned_model --list
  python generate_from_finetuned.py --model_path ./fine_tuned_model --checkpoint last --decoding top_p --top_k 50
  python generate_from_finetuned.py --model_path ./fine_tuned_model --interactive
"""


def parser() -> cli.Parser:
    """Return the parser of this script."""
    script = cli.Parser(prog="generate_from_finetuned.py", description=__doc__, examples=EXAMPLES)
    for options in (
        ModelPathOptions,
        RevisionOptions,
        AdapterOptions,
        CheckpointOptions,
        DeviceOptions,
        PrecisionOptions,
        DraftOptions,
        DecodingOptions,
        PromptOptions,
        SessionOptions,
        InspectionOptions,
    ):
        script.add_options(options)
    return script


def generate(given: dict[str, Any]) -> None:
    """Generate with the model that the flags name, or run a session with it."""
    flags = Flags(given)
    name = flags.pick(ModelPathOptions).model_path
    if not name:
        raise UserError("is required: give the directory of a fine-tuned model", "model_path")
    if flags.pick(SessionOptions).interactive:
        session(ModelChoice.from_flags(flags, name, "model_path"), SessionCommand.from_flags(flags))
    else:
        generate_or_inspect(flags, name, "model_path")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script and return its exit code."""
    return cli.run(parser(), generate, argv)


if __name__ == "__main__":
    sys.exit(main())
