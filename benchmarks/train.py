"""Measure training speed: ours and transformers' plain Trainer at its defaults, on the same blocks in the same order.

    python benchmarks/train.py                                       # gpt2-tiny on sample_data.txt
    python benchmarks/train.py --model gpt2 --block_size 1024 --batch_size 16 --bf16 --steps 100      # on a GPU
    python benchmarks/train.py --model gpt2 --block_size 1024 --batch_size 16 --fp16 --gradient_checkpointing

All start from the same weights with the same seed and take turns, each run in a process of its own. They are timed
with dropout, GPT-2's default, and without. The timed runs log every 500 steps, as the plain Trainer does. Before that,
each runs once without dropout and logs every step, so that the losses can be compared. With --bf16 and --fp16 the plain
Trainer also runs in fp32, and the faster of its two counts. The table goes to stderr, then JSON to stdout.

On a CUDA GPU, the table also has the peak memory and, in 16 bits, the model FLOPs utilization: the floating-point
operations that the model needs, without what gradient checkpointing computes again, as a share of those in the data
sheet of the GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import fields, replace
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import machine
import torch
import transformers
from formats import ROOT
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from workers import spread

sys.path.insert(0, str(ROOT))

from gpt2tg.checkpoint.checkpoint import resolve_checkpoint
from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.options import TrainingOptions
from gpt2tg.training.data.blocks import NO_LOSS
from gpt2tg.training.data.sources import plan_sources
from gpt2tg.training.data.training_data import load_data
from gpt2tg.training.finetune import finetune
from gpt2tg.training.model.build import existing_model
from gpt2tg.training.model.memory_estimate import estimate_memory

# nanoGPT's README and the discussions of its repository, for gpt2 at block size 1,024: tokens per second on one A100.
NANOGPT_A100 = 107_000

# Warm-up steps, which are not timed.
WARM_UP = 5


class Measured(Exception):
    """The last step has ended: what follows, such as saving gpt2-xl, is not measured and takes long."""


class Clock(TrainerCallback):
    """Records when each step ended, and its loss.

    Args:
        stops: whether it raises `Measured` after the last step.
    """

    def __init__(self, stops: bool = False) -> None:
        self.stops = stops
        self.ends: list[float] = []
        self.losses: list[float] = []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if torch.cuda.is_available() and state.global_step in (WARM_UP, state.max_steps):
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        if self.stops and state.global_step == state.max_steps:
            raise Measured

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
        """Tokens per second after the warm-up steps."""
        return (len(self.ends) - WARM_UP) * tokens / (self.ends[-1] - self.ends[WARM_UP - 1])


def ours(options: TrainingOptions, model: str, place: str, clock: Clock) -> None:
    """Train as a user would."""
    finetune(replace(options, output_dir=place), model, callbacks=[clock])


def plain(options: TrainingOptions, model: str, place: str, clock: Clock) -> None:
    """Train with transformers' Trainer as its documentation shows it, on the same blocks in the same order."""
    checkpoint = resolve_checkpoint(model)
    data = load_data(plan_sources(options), existing_model(checkpoint)[1], options)
    transformers.set_seed(options.seed)
    network = transformers.GPT2LMHeadModel.from_pretrained(
        checkpoint.directory,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), options.dropout),
        local_files_only=True,
        dtype=torch.float32,
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint.directory, local_files_only=True)
    tokenizer.pad_token = tokenizer.eos_token
    padded = transformers.DataCollatorForSeq2Seq(tokenizer)  # for the last block, which may be short

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        whole = len({len(row["input_ids"]) for row in rows}) == 1
        return transformers.default_data_collator(rows) if whole else padded(rows)

    # The Trainer divides by the number of labels, and the first token of a block carries no loss: give it no label.
    ids = [row["input_ids"].tolist() for row in data.train]
    rows = [{"input_ids": block, "labels": [NO_LOSS, *block[1:]]} for block in ids]
    arguments = TrainingArguments(
        output_dir=place,
        per_device_train_batch_size=options.batch_size,
        max_steps=options.max_steps or -1,
        learning_rate=options.learning_rate,
        seed=options.seed,
        bf16=options.bf16,
        fp16=options.fp16,
        **checkpointing(options),
        logging_steps=options.logging_steps,
        save_strategy="no",
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
    )
    trainer = Trainer(model=network, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[clock])
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()


def checkpointing(options: TrainingOptions) -> dict[str, bool]:
    """Return the setting of gradient checkpointing, which newer versions of transformers name differently."""
    new, old = "activation_checkpointing", "gradient_checkpointing"
    known = {field.name for field in fields(TrainingArguments)}
    return {new if new in known else old: True} if options.gradient_checkpointing else {}


def plain_in_fp32(options: TrainingOptions, model: str, place: str, clock: Clock) -> None:
    """Train with transformers' Trainer without mixed precision."""
    plain(replace(options, bf16=False, fp16=False), model, place, clock)


RIVALS = {"gpt2tg": ours, "plain Trainer": plain, "plain Trainer fp32": plain_in_fp32}


def rivals(given: argparse.Namespace) -> list[str]:
    """Return which of them run: the last one only beside mixed precision."""
    return [*RIVALS] if given.bf16 or given.fp16 else [*RIVALS][:-1]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt2-tiny")
    parser.add_argument("--train_file", default=str(ROOT / "sample_data.txt"))
    parser.add_argument("--block_size", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dropout", type=float, default=0.1, help="of the runs that have it (default: 0.1)")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--fp16", action="store_true")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--compile", default="auto", choices=("auto", "on", "off"))
    parser.add_argument("--only", choices=RIVALS, help=argparse.SUPPRESS)  # one run, in this process
    parser.add_argument("--logging_steps", type=int, default=500, help=argparse.SUPPRESS)
    return parser.parse_args()


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Run one rival once; return its tokens per second, the losses that it logged, and what `figures` adds."""
    if not torch.cuda.is_available():
        torch.set_num_threads(machine.cores())
    options = TrainingOptions(
        train_file=given.train_file, block_size=given.block_size, batch_size=given.batch_size, max_steps=given.steps,
        bf16=given.bf16, fp16=given.fp16, gradient_checkpointing=given.gradient_checkpointing, compile=given.compile,
        dropout=given.dropout, validation_split=0, save_steps=10**6, logging_steps=given.logging_steps,
    )  # fmt: skip
    clock = Clock()
    train(given.only, options, given.model, clock)
    return {"losses": clock.losses, **figures(options, given.model, clock)}


def train(rival: str, options: TrainingOptions, model: str, clock: Clock) -> None:
    """Train in a temporary directory."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as place, contextlib.suppress(Measured):
        RIVALS[rival](options, model, str(Path(place, "run")), clock)


def figures(options: TrainingOptions, model: str, clock: Clock) -> dict[str, float]:
    """Return tokens per second; on a CUDA GPU also the peak memory, its estimate by --dry_run, and the utilization."""
    speed = clock.tokens_per_second(options.batch_size * options.block_size)
    found = {"tokens_per_second": speed}
    if torch.cuda.is_available():
        shape = resolve_checkpoint(model).shape
        found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        found["estimated_gb"] = estimate_memory(shape, options).peak / 1e9
        peak = machine.peak_flops(torch.cuda.get_device_name())
        if peak and (options.bf16 or options.fp16):
            found["utilization"] = speed * flops_per_token(shape, options) / peak
    return found


def flops_per_token(shape: ModelShape, options: TrainingOptions) -> float:
    """Return the floating-point operations that training needs for a token, counted as nanoGPT does.

    A weight takes part in two in the forward pass, two for the gradient of its input, and two for its own gradient,
    which LoRA does not compute. Attention counts the scores of all pairs of tokens, as if there was no causal mask.
    """
    forward = 2 * shape.n_embd * (shape.vocab_size + 12 * shape.n_layer * shape.n_embd)
    attention = 4 * shape.n_layer * shape.n_embd * options.block_size
    return (2 if options.lora else 3) * forward + 3 * attention


def started(name: str, dropout: float, logging_steps: int) -> dict[str, Any]:
    """Run one rival once in a process of its own."""
    flags = ["--only", name, "--dropout", str(dropout), "--logging_steps", str(logging_steps)]
    command = [sys.executable, __file__, *sys.argv[1:], *flags]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def race(names: list[str], dropout: float, rounds: int) -> dict[str, dict[str, float]]:
    """Return tokens per second of each, measured in turns; the first of each is not counted."""
    speeds: dict[str, list[float]] = {name: [] for name in names}
    last: dict[str, dict[str, Any]] = {}
    for number in range(rounds + 1):
        for name, values in speeds.items():
            last[name] = started(name, dropout, 500)
            if number:
                values.append(last[name]["tokens_per_second"])
    title = f"dropout {dropout:g}" if dropout else "no dropout"
    for name, values in speeds.items():
        middle = f"{median(values):8,.0f} tokens/s ({min(values):,.0f} to {max(values):,.0f})"
        more = described(last[name])
        print(f"{title:12} {name:18} {middle}{more and f', {more}'}", file=sys.stderr, flush=True)
    return {name: spread(values) | of_gpu(last[name]) for name, values in speeds.items()}


def of_gpu(found: dict[str, Any]) -> dict[str, float]:
    """Return the figures that only a GPU has."""
    return {name: value for name, value in found.items() if name not in ("tokens_per_second", "losses")}


def described(found: dict[str, Any]) -> str:
    """Return the figures that only a GPU has as text."""
    texts = []
    if "utilization" in found:
        texts.append(f"model FLOPs utilization {found['utilization']:.0%}")
    if "peak_gb" in found:
        texts.append(f"peak {found['peak_gb']:.1f} GB, --dry_run estimates {found['estimated_gb']:.1f} GB")
    return ", ".join(texts)


def largest_difference(losses: list[float], others: list[float]) -> float:
    """Return how far two curves are apart at most."""
    return max(abs(one - other) for one, other in zip(losses, others, strict=True))


def main() -> None:
    given = parse()
    if given.only:
        print(json.dumps(run(given)))
        return
    names = rivals(given)
    ours, *others = names
    losses = {name: started(name, 0.0, 1)["losses"] for name in names}
    apart = {name: largest_difference(losses[name], losses[names[-1]]) for name in names[:-1]}
    result = {"settings": vars(given), "machine": machine.description(), "losses": losses}
    for title, dropout in (("with dropout", given.dropout), ("without dropout", 0.0)):
        speeds = race(names, dropout, given.rounds)
        ratio = speeds[ours]["median"] / max(speeds[name]["median"] for name in others)
        print(f"{title}: {ratio:.2f} times as fast", file=sys.stderr)
        result[title] = {"tokens_per_second": speeds, "ratio": ratio}
    for name, difference in apart.items():
        print(
            f"losses of {name}: at most {difference:.1e} from {names[-1]} in {given.steps} steps, without dropout",
            file=sys.stderr,
        )
    print(f"published for nanoGPT, gpt2 at block 1,024 on one A100: {NANOGPT_A100:,} tokens/s", file=sys.stderr)
    print(json.dumps(result | {"largest_differences_of_losses": apart, "nanogpt_a100_published": NANOGPT_A100}))


if __name__ == "__main__":
    main()
