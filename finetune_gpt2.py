#!/usr/bin/env python3
"""Fine-tune a GPT-2 on your own text: text file in, checkpoint directory out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from gpt2tg import cli
from gpt2tg.commands.export import ExportCommand, export
from gpt2tg.commands.flags import Flags, flags_of, notice_unused
from gpt2tg.commands.train import TrainCommand, train
from gpt2tg.options import DeviceOptions, ExportOptions, ModelNameOptions, TrainingOptions

EXAMPLES = """\
examples:
  python finetune_gpt2.py --train_file my.txt
  python finetune_gpt2.py --train_file my.txt --model_name gpt2-tiny --generate_samples
  python finetune_gpt2.py --train_file novel.txt --examples paragraph --block_size 512 --bf16
  python finetune_gpt2.py --train_file corpus.txt --from_scratch --n_layer 8 --learning_rate 1e-3
  python finetune_gpt2.py --export gguf --model_name fine_tuned_model --output_dir exported
"""


def parser() -> cli.Parser:
    """Return the parser of this script."""
    script = cli.Parser(prog="finetune_gpt2.py", description=__doc__, examples=EXAMPLES)
    script.add_options(ModelNameOptions)
    script.add_options(DeviceOptions)
    script.add_options(TrainingOptions)
    script.add_options(ExportOptions)
    return script


def train_or_export(given: dict[str, Any]) -> None:
    """Train, merge an adapter, or export a model, as the flags say."""
    flags = Flags(given)
    if flags.pick(ExportOptions).is_asked_for:
        export(ExportCommand.from_flags(flags))
        return
    notice_unused(given, flags_of(ExportOptions), "it does nothing without --export or --merge")
    train(TrainCommand.from_flags(flags))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script and return its exit code."""
    return cli.run(parser(), train_or_export, argv)


if __name__ == "__main__":
    sys.exit(main())
