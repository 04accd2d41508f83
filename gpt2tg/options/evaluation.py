"""The options of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2tg.options.data import TEXT_COLUMN, Examples
from gpt2tg.options.fields import Options, option


@dataclass(frozen=True)
class EvaluationOptions(Options):
    """An evaluation: the loss and the perplexity of a model on a text."""

    eval_file: tuple[str, ...] = option(
        (),
        "the text to evaluate on, UTF-8; several files, patterns and folders as for training",
        group="evaluation",
        metavar="FILE",
        is_common=True,
        is_required=True,
        accepts_string=True,
    )
    stride: int | None = option(
        None,
        "tokens between the starts of two windows; smaller gives each token more context, and is slower",
        group="evaluation",
        low=1,
        shown_default="half the context length",
    )
    examples: Examples = option(
        "line", "what one example is, as for training", group="data", choices=Examples, is_common=True
    )
    text_column: str | None = TEXT_COLUMN
    batch_size: int = option(4, "batch size: windows per forward pass", group="evaluation", low=1)
