"""The parts of gpu_check.py about training: speed, utilization, memory, also of the plain Trainer.

Each run is a few steps on blocks of 1,024 tokens; what is saved at the end of a run is not measured. A run whose loss
is not finite fails.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import formats
import torch
from gpu_results import Check

BLOCK = 1024


@dataclass(frozen=True)
class Case:
    """A run: the model, blocks per step, and options that differ from the defaults."""

    shape: str
    batch: int
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        named = [name if value is True else f"{name} {value}" for name, value in self.options.items()]
        return ", ".join([self.shape, *named, f"{self.batch} blocks a step"])

    def for_machine(self, check: Check) -> Case:
        """Return the run that this machine can do: in a rehearsal a smaller one, and without a GPU bf16 for fp16."""
        options = dict(self.options)
        if check.is_small:
            options["block_size"] = 32
        if check.device == "cpu" and options.pop("fp16", False):
            options["bf16"] = True
        return replace(self, batch=check.sized(self.batch, 2), options=options)


# The plain Trainer takes part in these.
COMPARED = (
    Case("gpt2", 16, {"bf16": True}),
    Case("gpt2", 16, {"fp16": True, "gradient_checkpointing": True}),
)
XL = (
    Case("gpt2-xl", 4, {"bf16": True, "lora": True}),
    Case("gpt2-xl", 4, {"bf16": True}),
)
MORE = (
    Case("gpt2-medium", 8, {"bf16": True}),
    Case("gpt2-large", 8, {"bf16": True}),
    Case("gpt2", 16, {"fp16": True}),
    Case("gpt2", 8, {}),
    # A block of a multiple of 64 that is none of 128, a mask and no dropout: here cuDNN's backward pass returned NaN.
    Case("gpt2", 16, {"bf16": True, "no_cross_examples": True, "dropout": 0.0, "block_size": 960}),
)
COMPILED = (Case("gpt2", 16, {"bf16": True, "compile": "on"}),)


def run_cases(check: Check, cases: tuple[Case, ...], rival: str) -> None:
    """Write tokens per second, utilization and memory of each run."""
    os.environ["TQDM_DISABLE"] = "1"
    text = check.cache / "text.txt"
    if not text.exists():
        unfinished = text.with_name(f"text-{os.getpid()}")
        unfinished.write_text(training_text(check), encoding="utf-8")
        unfinished.rename(text)
    for case in (case.for_machine(check) for case in cases):
        with check.rows.attempt(str(case)):
            found = run(check, case, rival, text)
            speed = found.pop("tokens_per_second")
            check.rows.add(str(case), speed, "tokens/s", found.pop("note"), **found)
        gc.collect()
        if check.device == "cuda":
            torch.cuda.empty_cache()


def training_text(check: Check) -> str:
    """Return text for all steps of a run. Each line has a number, so that no two are equal."""
    lines = (formats.ROOT / "sample_data.txt").read_text(encoding="utf-8").splitlines()
    return "".join(f"{number}. {lines[number % len(lines)]}\n" for number in range(check.sized(12 * len(lines), 60)))


def run(check: Check, case: Case, rival: str, text: Path) -> dict[str, Any]:
    """Train for a few steps; return the figures of train.py and a note."""
    import train

    from gpt2tg.options import TrainingOptions

    options = TrainingOptions(
        train_file=(str(text),), batch_size=case.batch, max_steps=check.sized(25, train.WARM_UP + 2),
        validation_split=0, save_steps=10**6, logging_steps=5,
        **{"block_size": BLOCK, "compile": "off", "dropout": 0.1, **case.options},
    )  # fmt: skip
    clock = train.Clock(stops=True)
    directory = str(formats.checkpoint(case.shape, check.cache))
    train.train(rival, options, directory, clock)
    note = f"loss {clock.losses[-1]:.2f}"
    found = train.figures(options, directory, clock)
    return {**found, "loss": clock.losses[-1], "note": ", ".join(filter(None, (train.described(found), note)))}


PARTS: dict[str, Callable[[Check], None]] = {
    "training": lambda check: run_cases(check, COMPARED, "gpt2tg"),
    "plain_trainer": lambda check: run_cases(check, COMPARED, "plain Trainer"),
    "training_xl": lambda check: run_cases(check, XL, "gpt2tg"),
    "more_training": lambda check: run_cases(check, MORE, "gpt2tg"),
    "training_compiled": lambda check: run_cases(check, COMPILED, "gpt2tg"),
}
