#!/usr/bin/env python3
"""Everything with one script: --task train makes a model from a text file, --task generate writes with it, and
--task evaluate measures how well it knows another text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from gpt2tg import cli, commands
from gpt2tg.errors import UserError
from gpt2tg.options import (
    ALL_IN_ONE_DEFAULTS,
    CheckpointOptions,
    DecodingOptions,
    DeviceOptions,
    EvaluationOptions,
    InspectionOptions,
    ModelNameOptions,
    PrecisionOptions,
    PromptOptions,
    TaskOptions,
    TrainingOptions,
    only,
)

EXAMPLES = """\
examples:
  python gpt2_text_generation.py --task generate --model_name gpt2-tiny --prompt "The dragon"
  python gpt2_text_generation.py --task train --model_name gpt2-tiny --train_file my.txt
  python gpt2_text_generation.py --task generate --model_name ./trained_model --decoding top_p --num_sequences 3
  python gpt2_text_generation.py --task evaluate --model_name ./trained_model --eval_file other.txt
"""

# The options of each task; a flag of the other task alone is said to be of no use.
TASKS: dict[str, tuple[type, ...]] = {
    "train": (ModelNameOptions, DeviceOptions, TrainingOptions),
    "generate": (
        ModelNameOptions,
        CheckpointOptions,
        DeviceOptions,
        PrecisionOptions,
        DecodingOptions,
        PromptOptions,
        InspectionOptions,
    ),
    "evaluate": (ModelNameOptions, CheckpointOptions, DeviceOptions, EvaluationOptions),
}

# The flags that --help shows without a task.
COMMON = (
    *("task", "model_name", "train_file", "output_dir", "epochs", "learning_rate", "block_size"),
    *("prompt", "decoding", "temperature", "top_k", "top_p", "max_length", "num_sequences", "seed", "eval_file"),
)


def parser() -> cli.Parser:
    """The flags of this script: those of both tasks."""
    script = cli.Parser(prog="gpt2_text_generation.py", description=__doc__, examples=EXAMPLES, common=COMMON)
    script.add_options(TaskOptions)
    for task in ("generate", "train", "evaluate"):
        for options in TASKS[task]:
            script.add_options(options, task=task, **ALL_IN_ONE_DEFAULTS)
    return script


def run_task(given: dict[str, Any]) -> None:
    """Train, generate or evaluate, as --task says."""
    task = cli.pick(TaskOptions, given).task
    if task is None:
        raise UserError("is required: train, generate or evaluate", "task")
    own = {name for options in (TaskOptions, *TASKS[task]) for name in only(options, given)}
    for name in [name for name in given if name not in own]:
        cli.notice(f"{cli.flag(name)} is not used: it does nothing in --task {task}")
    if task == "train":
        commands.train(given, **ALL_IN_ONE_DEFAULTS)
    elif task == "evaluate":
        commands.evaluate(given)
    else:
        name = cli.pick(ModelNameOptions, given).model_name
        commands.generate(given, name, "model_name", **ALL_IN_ONE_DEFAULTS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns its exit code."""
    return cli.run(parser(), run_task, argv)


if __name__ == "__main__":
    sys.exit(main())
