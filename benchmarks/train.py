"""Training speed: ours beside transformers' plain Trainer at its defaults, on the same blocks in the same order.

    python benchmarks/train.py                                       # gpt2-tiny on sample_data.txt
    python benchmarks/train.py --model gpt2 --block_size 1024 --batch_size 16 --bf16 --steps 100      # on a GPU

Both start from the same weights with the same seed and take turns, a round each. Dropout is off in both, so that their
losses can be compared step by step: in a round before the timed ones, which log every 500 steps. The table goes to
stderr, JSON to stdout, last.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import machine
import torch
import transformers
from formats import ROOT
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from workers import spread

sys.path.insert(0, str(ROOT))

from gpt2tg.engine.checkpoints import find_checkpoint
from gpt2tg.options import TrainingOptions
from gpt2tg.training.data import TrainingData, load_data
from gpt2tg.training.finetune import finetune
from gpt2tg.training.model import existing_model
from gpt2tg.training.sources import plan_sources

# nanoGPT's README and the discussions of its repository, for gpt2 at block 1,024: tokens a second on one A100.
NANOGPT_A100 = 107_000

# Steps at the beginning that no speed is taken from.
WARM_UP = 5


class Clock(TrainerCallback):
    """When each step ended, and its loss."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if torch.cuda.is_available() and state.global_step in (WARM_UP, state.max_steps):
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])

    def tokens_per_second(self, tokens: int) -> float:
        """Of the steps after those for warming up."""
        return (len(self.ends) - WARM_UP) * tokens / (self.ends[-1] - self.ends[WARM_UP - 1])


def ours(options: TrainingOptions, model: str, place: Path) -> Clock:
    """A run as a user starts it."""
    clock = Clock()
    finetune(replace(options, output_dir=str(place)), model, callbacks=[clock])
    return clock


def plain(options: TrainingOptions, model: str, data: TrainingData, place: Path) -> Clock:
    """transformers' Trainer as its documentation shows it, with its collator for language models."""
    clock = Clock()
    transformers.set_seed(options.seed)
    directory = find_checkpoint(model)
    network = transformers.GPT2LMHeadModel.from_pretrained(
        directory, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, local_files_only=True, dtype=torch.float32
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
    tokenizer.pad_token = tokenizer.eos_token
    rows = [{"input_ids": row["input_ids"].tolist(), "labels": row["input_ids"].tolist()} for row in data.train]
    arguments = TrainingArguments(
        output_dir=str(place),
        per_device_train_batch_size=options.batch_size,
        max_steps=options.max_steps or -1,
        learning_rate=options.learning_rate,
        seed=options.seed,
        bf16=options.bf16,
        logging_steps=options.logging_steps,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=network,
        args=arguments,
        train_dataset=rows,
        data_collator=transformers.default_data_collator,
        callbacks=[clock],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt2-tiny")
    parser.add_argument("--train_file", default=str(ROOT / "sample_data.txt"))
    parser.add_argument("--block_size", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", default="auto", choices=("auto", "on", "off"))
    given = parser.parse_args()
    if not torch.cuda.is_available():
        torch.set_num_threads(machine.cores())
    options = TrainingOptions(
        train_file=given.train_file, block_size=given.block_size, batch_size=given.batch_size, max_steps=given.steps,
        bf16=given.bf16, compile=given.compile, dropout=0.0, validation_split=0, logging_steps=1, save_steps=10**6,
    )  # fmt: skip
    _, tokenizer = existing_model(find_checkpoint(given.model))
    data = load_data(plan_sources(options), tokenizer, options)
    clocks: dict[str, list[Clock]] = {"gpt2tg": [], "plain Trainer": []}
    with tempfile.TemporaryDirectory() as place:
        for number in range(given.rounds + 1):
            options = replace(options, logging_steps=500 if number else 1)
            clocks["gpt2tg"].append(ours(options, given.model, Path(place, f"ours{number}")))
            clocks["plain Trainer"].append(plain(options, given.model, data, Path(place, f"plain{number}")))
    tokens = given.batch_size * given.block_size
    speeds = {name: [clock.tokens_per_second(tokens) for clock in runs[1:]] for name, runs in clocks.items()}
    # The plain Trainer divides the loss of a block by all its tokens, though nothing is told of the first.
    theirs = [loss * given.block_size / (given.block_size - 1) for loss in clocks["plain Trainer"][0].losses]
    losses = {"gpt2tg": clocks["gpt2tg"][0].losses, "plain Trainer": theirs}
    apart = max(abs(one - other) for one, other in zip(*losses.values(), strict=True))
    ratio = median(speeds["gpt2tg"]) / median(speeds["plain Trainer"])
    for name, values in speeds.items():
        print(
            f"{name:14} {median(values):10,.0f} tokens/s  ({min(values):,.0f} to {max(values):,.0f})", file=sys.stderr
        )
    print(f"{ratio:.2f} times as fast; losses at most {apart:.1e} apart in {given.steps} steps", file=sys.stderr)
    print(f"published for nanoGPT, gpt2 at block 1,024 on one A100: {NANOGPT_A100:,} tokens/s", file=sys.stderr)
    result = {
        "settings": vars(given),
        "machine": machine.description(),
        "tokens_per_second": {name: spread(values) for name, values in speeds.items()},
        "ratio": ratio,
        "largest_difference_of_losses": apart,
        "losses": losses,
        "nanogpt_a100_published": NANOGPT_A100,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
