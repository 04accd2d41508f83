"""The options of a training run on which examples it uses."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2tg.options.fields import LARGEST_SEED, Options, option


@dataclass(frozen=True)
class SelectionOptions(Options):
    """Which of the examples are learned from, held out, and measured at the end."""

    test_file: tuple[str, ...] = option(
        (),
        "test text: measured once, by the final model; nothing is chosen by it",
        group="data",
        metavar="FILE",
        shown_default="none",
        accepts_string=True,
    )
    max_train_examples: int | None = option(
        None, "learn from N of the examples, drawn at random", group="data", low=1, shown_default="all"
    )
    max_eval_examples: int | None = option(
        None, "validate on N of the held-out examples, drawn at random", group="data", low=1, shown_default="all"
    )
    drop_copies: bool = option(
        False, "drop examples that are exact copies of earlier ones, before any are held out", group="data"
    )
    split_seed: int | None = option(
        None,
        "random seed of what is held out, apart from --seed",
        group="data",
        low=0,
        high=LARGEST_SEED,
        shown_default="that of --seed",
    )
