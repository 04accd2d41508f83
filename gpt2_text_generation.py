#!/usr/bin/env python3
"""Train, generate and evaluate with one script: --task train makes a model from a text file, --task generate writes
with it, and --task evaluate measures how well it predicts another text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from gpt2tg import cli
from gpt2tg.commands.dispatch import generate_or_inspect
from gpt2tg.commands.evaluate import evaluate
from gpt2tg.commands.flags import Flags, flags_of, notice_unused
from gpt2tg.commands.loading import ModelChoice
from gpt2tg.commands.train import TrainCommand, train
from gpt2tg.errors import UserError
from gpt2tg.options import (
    ALL_IN_ONE_DEFAULTS,
    AdapterOptions,
    CheckpointOptions,
    DecodingOptions,
    DeviceOptions,
    DraftOptions,
    EvaluationOptions,
    InspectionOptions,
    ModelNameOptions,
    PrecisionOptions,
    PromptOptions,
    RevisionOptions,
    TaskOptions,
    TrainingOptions,
)

EXAMPLES = """\
examples:
  python gpt2_text_generation.py --task generate --model_name gpt2-tiny --prompt "The dragon"
  python gpt2_text_generation.py --task train --model_name gpt2-tiny --train_file my.txt
  python gpt2_text_generation.py --task generate --model_name ./trained_model --decoding top_p --num_sequences 3
  python gpt2_text_generation.py --task evaluate --model_name ./trained_model --eval_file other.txt
"""

# The options of each task. Flags of another task alone are ignored with a notice.
TASKS: dict[str, tuple[type, ...]] = {
    "train": (ModelNameOptions, DeviceOptions, TrainingOptions),
    "generate": (
        ModelNameOptions,
        RevisionOptions,
        AdapterOptions,
        CheckpointOptions,
        DeviceOptions,
        PrecisionOptions,
        DraftOptions,
        DecodingOptions,
        PromptOptions,
        InspectionOptions,
    ),
    "evaluate": (
        ModelNameOptions,
        RevisionOptions,
        AdapterOptions,
        CheckpointOptions,
        DeviceOptions,
        EvaluationOptions,
    ),
}

# The flags that --help shows without a task.
COMMON = (
    *("task", "model_name", "train_file", "output_dir", "epochs", "learning_rate", "block_size"),
    *("prompt", "decoding", "temperature", "top_k", "top_p", "max_length", "num_sequences", "seed", "eval_file"),
)


def parser() -> cli.Parser:
    """Return the parser of this script, with the flags of all tasks."""
    script = cli.Parser(prog="gpt2_text_generation.py", description=__doc__, examples=EXAMPLES, common=COMMON)
    script.add_options(TaskOptions)
    for task in ("generate", "train", "evaluate"):
        for options in TASKS[task]:
            script.add_options(options, task=task, **ALL_IN_ONE_DEFAULTS)
    return script


def run_task(given: dict[str, Any]) -> None:
    """Train, generate or evaluate, as --task says."""
    flags = Flags(given)
    task = flags.pick(TaskOptions).task
    if task is None:
        raise UserError("is required: train, generate or evaluate", "task")
    used = {"task", "debug", *(name for options in TASKS[task] for name in flags_of(options))}
    notice_unused(given, [name for name in given if name not in used], f"it does nothing in --task {task}")
    if task == "train":
        train(TrainCommand.from_flags(flags, **ALL_IN_ONE_DEFAULTS))
        return
    name = flags.pick(ModelNameOptions).model_name
    if task == "evaluate":
        evaluate(ModelChoice.from_flags(flags, name, "model_name"), flags.pick(EvaluationOptions))
    else:
        generate_or_inspect(flags, name, "model_name", **ALL_IN_ONE_DEFAULTS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script and return its exit code."""
    return cli.run(parser(), run_task, argv)


if __name__ == "__main__":
    sys.exit(main())
