#!/usr/bin/env python3
"""Generate text from a fine-tuned model: checkpoint directory in, text out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from gpt2tg import cli, commands
from gpt2tg.options import (
    CheckpointOptions,
    DecodingOptions,
    DeviceOptions,
    InspectionOptions,
    ModelPathOptions,
    PrecisionOptions,
    PromptOptions,
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
    """The flags of this script."""
    script = cli.Parser(prog="generate_from_finetuned.py", description=__doc__, examples=EXAMPLES)
    for options in (
        ModelPathOptions,
        CheckpointOptions,
        DeviceOptions,
        PrecisionOptions,
        DecodingOptions,
        PromptOptions,
        SessionOptions,
        InspectionOptions,
    ):
        script.add_options(options)
    return script


def generate(given: dict[str, Any]) -> None:
    """Generate from the directory that the flags name, or sit with its model."""
    answer = commands.interactive if cli.pick(SessionOptions, given).interactive else commands.generate
    answer(given, given.get("model_path"), "model_path")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns its exit code."""
    return cli.run(parser(), generate, argv)


if __name__ == "__main__":
    sys.exit(main())
