"""The options of a training run on the text it learns from."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2tg.options.data import TEXT_COLUMN, Examples
from gpt2tg.options.fields import Options, option


@dataclass(frozen=True)
class TrainingDataOptions(Options):
    """The text to learn from, and how it becomes examples and blocks."""

    train_file: tuple[str, ...] = option(
        (),
        "the text to learn from, UTF-8: plain text, .csv, .tsv, .jsonl, .json, .parquet or .arrow, text also "
        "compressed; several files, patterns like 'texts/*.txt', or a folder",
        group="data",
        metavar="FILE",
        shown_default="none; this or --dataset_name is required",
        is_common=True,
        accepts_string=True,
    )
    dataset_name: str | None = option(
        None,
        "in place of --train_file: a dataset on the Hugging Face hub, or its folder, and maybe a configuration",
        group="data",
        metavar="NAME[:CONFIG]",
        is_common=True,
    )
    dataset_split: str | None = option(
        None,
        "the split to train on; a validation split of the dataset is used as such",
        group="data",
        metavar="NAME",
        shown_default="train, or the only one",
    )
    dataset_revision: str | None = option(
        None,
        "the branch, tag or commit of the dataset on the hub",
        group="data",
        metavar="REVISION",
        shown_default="its newest commit; run.json notes which",
    )
    dataset_streaming: bool = option(
        False, "tokenize the dataset while it is downloaded, and keep only the tokens", group="data"
    )
    validation_file: tuple[str, ...] = option(
        (),
        "validation text; without it, and without a validation split of the dataset, a part of the training "
        "examples is held out",
        group="data",
        metavar="FILE",
        shown_default="none",
        accepts_string=True,
    )
    validation_split: float = option(
        0.05,
        "fraction of the text to hold out for validation; 0 disables",
        group="data",
        low=0,
        below=1,
        is_common=True,
    )
    examples: Examples = option(
        "line",
        "what one example of plain text is: a non-empty line, a paragraph (blank lines between), or the whole file; "
        "in a table, each row is one example",
        group="data",
        choices=Examples,
        is_common=True,
    )
    text_column: str | None = TEXT_COLUMN
    chat_template: str | None = option(
        None,
        "the Jinja template that writes conversations as text: a file, or plain; it is saved with the model",
        group="data",
        metavar="FILE",
        shown_default="that of the model, or plain if it has none",
    )
    block_size: int = option(
        128,
        "context length in training, in tokens; examples are packed into blocks of this size",
        group="data",
        low=4,
        is_common=True,
    )
    no_cross_examples: bool = option(
        False,
        "no attention between examples of the same block: positions and attention restart with each example; the "
        "default for prompts with completions and for conversations",
        group="data",
    )
    cross_examples: bool = option(
        False,
        "join prompts with completions and conversations to one stream and cut it into blocks, as plain text is",
        group="data",
    )
    dry_run: bool = option(
        False,
        "print what the run would do, with its memory and time, and exit",
        group="data",
        is_common=True,
    )
    show_blocks: int = option(
        0, "print the first N blocks as the model will see them, marking tokens without loss", group="data", low=0
    )
