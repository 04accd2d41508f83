#!/usr/bin/env python3
"""Explore a model: type the beginning of a text and watch the model continue it, compare the decoding strategies,
search the settings that suit it, write with it on a page in the browser, or serve it to other programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from gpt2tg import cli
from gpt2tg.commands.compare import CompareCommand, compare
from gpt2tg.commands.flags import Flags, flags_of, notice_unused
from gpt2tg.commands.loading import ModelChoice
from gpt2tg.commands.serve import ServeCommand, serve
from gpt2tg.commands.session import SessionCommand, session
from gpt2tg.commands.tune import TuneCommand, tune
from gpt2tg.errors import UserError
from gpt2tg.options import (
    AdapterOptions,
    CheckpointOptions,
    CompareOptions,
    DecodingOptions,
    DeviceOptions,
    DraftOptions,
    ModelNameOptions,
    ModelPathOptions,
    PrecisionOptions,
    PromptOptions,
    RevisionOptions,
    ServingOptions,
    TuneOptions,
)

EXAMPLES = """\
examples:
  python text_generation_demo.py --model_name gpt2-tiny
  python text_generation_demo.py --model_path ./fine_tuned_model --temperature 0.9
  python text_generation_demo.py --model_name gpt2-tiny --compare --prompt "The old king" --seed 7
  python text_generation_demo.py --model_path ./fine_tuned_model --compare --reference held_out.txt --report report.html
  python text_generation_demo.py --model_path ./fine_tuned_model --tune --reference held_out.txt --apply
  python text_generation_demo.py --model_path ./fine_tuned_model --web
  python text_generation_demo.py --model_path ./fine_tuned_model --serve
"""


def parser() -> cli.Parser:
    """Return the parser of this script."""
    script = cli.Parser(prog="text_generation_demo.py", description=__doc__, examples=EXAMPLES)
    script.add_options(ModelNameOptions)
    script.add_options(ModelPathOptions, model_path="the model of --model_name")
    for options in (
        RevisionOptions,
        AdapterOptions,
        DeviceOptions,
        PrecisionOptions,
        DraftOptions,
        CompareOptions,
        TuneOptions,
        ServingOptions,
        DecodingOptions,
    ):
        script.add_options(options)
    script.add_options(CheckpointOptions, only=("checkpoint",))
    script.add_options(PromptOptions, only=("prompt", "prompts_file", "text_column", "batch_size"))
    return script


def demonstrate(given: dict[str, Any]) -> None:
    """Run a session, a comparison, a search for settings, or a server."""
    if "model_name" in given and "model_path" in given:
        raise UserError(
            f"{given['model_path']} and --model_name {given['model_name']}: give one of the two", "model_path"
        )
    option = "model_path" if "model_path" in given else "model_name"
    name = given.get(option) or ModelNameOptions().model_name
    flags = Flags(given)
    model = ModelChoice.from_flags(flags, name, option)
    if (serving := flags.pick(ServingOptions)).is_serving:
        _refuse_other_tasks(flags, "web" if serving.web else "serve")
        serve(model, ServeCommand.from_flags(flags))
        return
    notice_unused(flags.names, flags_of(ServingOptions), "it does nothing without --serve or --web")
    if flags.pick(TuneOptions).tune:
        tune(model, TuneCommand.from_flags(flags))
    elif flags.pick(CompareOptions).compare:
        compare(model, CompareCommand.from_flags(flags))
    else:
        session(model, SessionCommand.from_flags(_flags_of_session(flags)))


def _refuse_other_tasks(flags: Flags, task: str) -> None:
    """Refuse --serve or --web beside --compare or --tune."""
    for name, is_asked_for in (("compare", flags.pick(CompareOptions).compare), ("tune", flags.pick(TuneOptions).tune)):
        if is_asked_for:
            raise UserError(f"and --{name} contradict each other: give one of the two", task)


def _flags_of_session(flags: Flags) -> Flags:
    """Return the flags without those of a comparison or a search, with a notice for each of them."""
    unused = ("prompts_file", *flags_of(CompareOptions), *flags_of(TuneOptions))
    notice_unused(flags.names, unused, "it does nothing without --compare or --tune")
    dropped = (*unused, *flags_of(ServingOptions))
    return Flags({flag: value for flag, value in flags.values.items() if flag not in dropped})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script and return its exit code."""
    return cli.run(parser(), demonstrate, argv)


if __name__ == "__main__":
    sys.exit(main())
