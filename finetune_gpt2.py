#!/usr/bin/env python3
"""Fine-tune a GPT-2 on your own text: text file in, checkpoint directory out."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from gpt2tg import cli, commands
from gpt2tg.options import DeviceOptions, ModelNameOptions, TrainingOptions

EXAMPLES = """\
examples:
  python finetune_gpt2.py --train_file my.txt
  python finetune_gpt2.py --train_file my.txt --model_name gpt2-tiny --generate_samples
  python finetune_gpt2.py --train_file novel.txt --examples paragraph --block_size 512 --bf16
  python finetune_gpt2.py --train_file corpus.txt --from_scratch --n_layer 8 --learning_rate 1e-3
"""


def parser() -> cli.Parser:
    """The flags of this script."""
    script = cli.Parser(prog="finetune_gpt2.py", description=__doc__, examples=EXAMPLES)
    script.add_options(ModelNameOptions)
    script.add_options(DeviceOptions)
    script.add_options(TrainingOptions)
    return script


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns its exit code."""
    return cli.run(parser(), commands.train, argv)


if __name__ == "__main__":
    sys.exit(main())
