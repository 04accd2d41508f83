"""The options of a training run on its directory, checkpoints, log and samples."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2tg.options.fields import LARGEST_SEED, Options, option
from gpt2tg.options.model import BestOrLast
from gpt2tg.options.prompts import DEFAULT_PROMPT

# The value of `--resume` without a path: the newest complete checkpoint.
NEWEST = "newest"


@dataclass(frozen=True)
class TrainingRunOptions(Options):
    """Where a run saves, what it validates and logs, and the samples it generates."""

    output_dir: str = option(
        "./fine_tuned_model", "where to save the model", group="run", metavar="DIR", is_common=True
    )
    resume: str | None = option(
        None,
        "resume from the newest complete checkpoint of the output directory, or from the one at PATH",
        group="run",
        flag_value=NEWEST,
        metavar="PATH",
        shown_default="off",
        is_common=True,
    )
    resume_anyway: bool = option(
        False, "resume although data, model or settings differ from those that the run started with", group="run"
    )
    overwrite: bool = option(
        False,
        "delete the files of an earlier run in the output directory, and no others",
        group="run",
        is_common=True,
    )
    save_steps: int = option(1000, "steps between checkpoints", group="run", low=1)
    save_minutes: float = option(
        15, "minutes between checkpoints, besides those of --save_steps; 0 disables", group="run", low=0
    )
    save_total_limit: int = option(
        2, "number of checkpoints to keep: the newest, and the best besides; 0 keeps all", group="run", low=0
    )
    eval_steps: int | None = option(
        None,
        "steps between validations, in addition to the one after each epoch",
        group="run",
        low=1,
        shown_default="off",
    )
    keep: BestOrLast = option(
        "best",
        "the checkpoint to save as the final model: that with the lowest validation loss, or the last",
        group="run",
        choices=BestOrLast,
    )
    early_stopping_patience: int | None = option(
        None,
        "early stopping: end after this many validations without a lower loss",
        group="run",
        low=1,
        shown_default="off",
    )
    logging_steps: int = option(10, "steps between log lines", group="run", low=1)
    report_to: tuple[str, ...] = option(
        (),
        "also log to tensorboard, wandb or another service that transformers supports",
        group="run",
        metavar="NAME",
        shown_default="none",
    )
    seed: int = option(
        42,
        "random seed of the initial weights, the order of the data and dropout",
        group="run",
        low=0,
        high=LARGEST_SEED,
    )
    push_to_hub: bool = option(
        False,
        "upload the model to the Hugging Face hub after training; --trainer hub_model_id=NAME names it there",
        group="run",
    )

    generate_samples: bool = option(
        False, "generate samples from the new model after training", group="samples", is_common=True
    )
    prompt: str = option(DEFAULT_PROMPT, "prompt of the samples", group="samples", metavar="TEXT", is_text=True)
    num_samples: int = option(3, "number of samples", group="samples", low=1)
    sample_steps: int | None = option(
        None,
        "also generate samples every N steps of training, printed and written to samples.md",
        group="samples",
        low=1,
        shown_default="off",
    )
