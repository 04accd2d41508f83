#!/usr/bin/env python3
"""Sit with a model: type the beginning of a text and watch it go on, compare the decoding strategies,
or search the settings that suit it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from gpt2tg import cli, commands
from gpt2tg.errors import UserError
from gpt2tg.options import (
    CheckpointOptions,
    CompareOptions,
    DecodingOptions,
    DeviceOptions,
    ModelNameOptions,
    ModelPathOptions,
    PrecisionOptions,
    PromptOptions,
    TuneOptions,
    only,
)

EXAMPLES = """\
examples:
  python text_generation_demo.py --model_name gpt2-tiny
  python text_generation_demo.py --model_path ./fine_tuned_model --temperature 0.9
  python text_generation_demo.py --model_name gpt2-tiny --compare --prompt "The old king" --seed 7
  python text_generation_demo.py --model_path ./fine_tuned_model --compare --reference held_out.txt --report report.html
  python text_generation_demo.py --model_path ./fine_tuned_model --tune --reference held_out.txt --apply
"""


def parser() -> cli.Parser:
    """The flags of this script."""
    script = cli.Parser(prog="text_generation_demo.py", description=__doc__, examples=EXAMPLES)
    script.add_options(ModelNameOptions)
    script.add_options(ModelPathOptions, model_path="the model of --model_name")
    for options in (
        DeviceOptions,
        PrecisionOptions,
        CompareOptions,
        TuneOptions,
        DecodingOptions,
    ):
        script.add_options(options)
    script.add_options(CheckpointOptions, only=("checkpoint",))
    script.add_options(PromptOptions, only=("prompt", "prompts_file", "text_column", "batch_size"))
    return script


def demonstrate(given: dict[str, Any]) -> None:
    """A session, the comparison, or the search for settings."""
    if "model_name" in given and "model_path" in given:
        raise UserError(
            f"{given['model_path']} and --model_name {given['model_name']}: give one of the two", "model_path"
        )
    option = "model_path" if "model_path" in given else "model_name"
    name = given.get(option) or ModelNameOptions().model_name
    if cli.pick(TuneOptions, given).tune:
        commands.tune(given, name, option)
    elif cli.pick(CompareOptions, given).compare:
        commands.compare(given, name, option)
    else:
        commands.interactive(_without_effect_dropped(given), name, option)


def _without_effect_dropped(given: dict[str, Any]) -> dict[str, Any]:
    """The flags without those that only a comparison listens to; says which they are."""
    unused = ("prompts_file", *only(CompareOptions, given), *only(TuneOptions, given))
    for flag in unused:
        if flag in given:
            cli.notice(f"--{flag} is not used: it does nothing without --compare or --tune")
    return {flag: value for flag, value in given.items() if flag not in unused}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns its exit code."""
    return cli.run(parser(), demonstrate, argv)


if __name__ == "__main__":
    sys.exit(main())
