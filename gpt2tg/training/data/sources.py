"""Plan what to train on and what to validate on, before any text is tokenized."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from gpt2tg.checkpoint.checkpoint import Checkpoint
from gpt2tg.options import EvaluationOptions, TrainingOptions
from gpt2tg.reading.plain_text import Piece
from gpt2tg.training.data.conversations import TemplateChoice
from gpt2tg.training.data.corpus import Corpus, scan_corpus
from gpt2tg.training.data.dataset_files import DatasetOrigin
from gpt2tg.training.data.file_pass import TextFormat
from gpt2tg.training.data.find_dataset import find_dataset
from gpt2tg.training.data.selection import (
    hold_out,
    plain_names,
    selection_notices,
    training_times,
    validation_times,
)
from gpt2tg.training.data.split import Split


@dataclass(frozen=True)
class TextSource:
    """One side of the split: the training examples of a corpus, or the held-out ones."""

    corpus: Corpus
    split: Split = field(default_factory=Split)
    is_held_out: bool = False
    times: np.ndarray | None = None  # (examples,) int64: how often each is seen in an epoch; None: each once
    most: int | None = None  # how many to use, drawn at random

    def __iter__(self) -> Iterator[Piece]:
        """Yield the text of the whole examples on this side. Examples cut in two belong to the training side."""
        number, chosen = 0, self.chosen
        for piece in self.corpus.pieces():
            if number < len(chosen) and chosen[number]:  # a file that grew is refused at its end
                yield piece
            number += piece.ends

    @property
    def count(self) -> int:
        """Number of whole examples on this side."""
        return int(self.chosen.sum())

    @property
    def chosen(self) -> np.ndarray:
        """(examples,) bool: which examples are used on this side. Those cut in two belong to the training side."""
        is_held_out = np.zeros(self.corpus.examples, dtype=bool)
        is_held_out[self.split.whole] = True
        on_this_side = is_held_out if self.is_held_out else ~is_held_out
        return on_this_side if self.times is None else on_this_side & (self.times > 0)


# The training text and the validation text, if there is any.
Sources = tuple[TextSource, TextSource | None]


def plan_sources(options: TrainingOptions, model_name: str | None = None) -> Sources:
    """Scan the text and choose the held-out examples.

    Args:
        model_name: the model to start from, whose chat template writes conversations, and whose tokenizer a dataset
            that is streamed needs; not read with `from_scratch`.

    Returns:
        The training text, and the validation text: the validation files, the dataset's own validation split,
        `validation_split` of the examples, or None. A single example is not split here: `load_data` holds out its last
        blocks.

    Raises:
        UserError: a file or the dataset cannot be used.
    """
    text_format = text_format_of(options, model_name)
    output = Path(options.output_dir)
    corpus, other = _scan_training_text(options, text_format, model_name)
    if options.validation_file:
        other = scan_corpus(options.validation_file, text_format, "validation_file", output)
    is_split = options.validation_split and other is None and corpus.examples > 1
    split = hold_out(corpus, options) if is_split else Split()
    times = training_times(corpus, split, options)
    corpus = replace(corpus, notices=(*corpus.notices, *selection_notices(corpus, times, options)))
    source = TextSource(corpus, split, times=times)
    if other is not None:
        return source, TextSource(other, times=validation_times(other, options), most=options.max_eval_examples)
    if not (len(split.whole) or len(split.partial)):  # a single example, or short copies of one text
        return source, None
    return source, TextSource(corpus, split, is_held_out=True, most=options.max_eval_examples)


def text_format_of(options: TrainingOptions, model_name: str | None) -> TextFormat:
    """Return how the text of a run is read.

    Args:
        model_name: of the model whose chat template writes conversations.
    """
    model = None if options.from_scratch else model_name
    return TextFormat(
        options.examples, options.text_column, TemplateChoice(options.chat_template, model, options.revision)
    )


def _scan_training_text(
    options: TrainingOptions, text_format: TextFormat, model_name: str | None
) -> tuple[Corpus, Corpus | None]:
    """Return the training text, and the dataset's own validation split if there is one to be used."""
    if options.dataset_name is None:
        return scan_corpus(plain_names(options.train_file), text_format, "train_file", Path(options.output_dir)), None
    from gpt2tg.training.data.dataset_scan import DatasetScan  # imports pyarrow, which takes a tenth of a second

    dataset = find_dataset(options.dataset_name, options.dataset_revision)
    split = dataset.training_split(options.dataset_split)
    held_out = None
    if options.validation_split and not options.validation_file:
        held_out = dataset.validation_split(split)
    scan = DatasetScan(dataset, text_format, options.dataset_streaming, model_name, options.add_tokens)
    origin = DatasetOrigin(dataset.name, dataset.config, dataset.commit, split, held_out)
    corpus = scan.scan(split, origin)
    return corpus, None if held_out is None else scan.scan(held_out, replace(origin, split=held_out))


def scan_evaluation(options: EvaluationOptions, checkpoint: Checkpoint | None = None) -> Corpus:
    """Scan the files to evaluate on.

    Args:
        checkpoint: the model, whose chat template writes conversations.

    Raises:
        UserError: a file cannot be used.
    """
    text_format = TextFormat(options.examples, options.text_column, TemplateChoice(model=checkpoint))
    return scan_corpus(options.eval_file, text_format, "eval_file")
