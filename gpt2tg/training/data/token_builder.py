"""Write tokens with a builder of `datasets`: an Arrow dataset with a row for each piece of text."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import datasets.builder
import numpy as np
import pyarrow
from datasets.exceptions import DatasetGenerationError

from gpt2tg.training.data.quiet_datasets import quiet_datasets
from gpt2tg.training.data.tokenization import TokenBatch
from gpt2tg.training.data.tokens import DATASET, ENDS, IDS, LEARNED, SPLIT

# What builders lock with.
FILE_LOCK = datasets.builder.FileLock


class TokenBuilder(datasets.ArrowBasedBuilder):  # type: ignore[misc]  # datasets has no types
    """Builds a dataset of token ids. Each batch of the tokenizer becomes one record batch of the Arrow file."""

    def __init__(self, batches: Iterator[TokenBatch], dtype: type[np.unsignedinteger], cache_dir: Path) -> None:
        """dtype: of the ids; cache_dir: for the builder's own files, of which none stays."""
        self._batches, self._dtype = batches, np.dtype(dtype)
        # A record batch is never cut: its ids are one array, of which slices can be read without a copy.
        super().__init__(cache_dir=str(cache_dir), dataset_name=DATASET, writer_batch_size=sys.maxsize)

    def _info(self) -> datasets.DatasetInfo:
        flag = datasets.Value("bool")
        ids = datasets.List(datasets.Value(self._dtype.name))
        return datasets.DatasetInfo(features=datasets.Features({IDS: ids, ENDS: flag, LEARNED: flag}))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(name=SPLIT)]

    def _generate_tables(self) -> Iterator[tuple[int, pyarrow.Table]]:
        for number, batch in enumerate(self._batches):
            offsets = pyarrow.array(np.concatenate([[0], np.cumsum(batch.lengths)]), pyarrow.int32())
            ids = pyarrow.ListArray.from_arrays(offsets, pyarrow.array(batch.ids))
            yield number, pyarrow.table({IDS: ids, ENDS: batch.ends, LEARNED: batch.learned})


def build_tokens(directory: Path, batches: Iterator[TokenBatch], dtype: type[np.unsignedinteger]) -> None:
    """Write the tokens, with the `dataset_info.json` of the dataset, into a directory that no other process uses.

    Args:
        dtype: of the ids.

    Raises:
        OSError: the directory cannot be written to.
        UserError: as raised by `batches`.
    """
    with quiet_datasets(), _without_locks(), _original_errors():
        builder = TokenBuilder(batches, dtype, directory.parent / "builder")
        builder.download_and_prepare(str(directory), max_shard_size=sys.maxsize)


@contextlib.contextmanager
def _without_locks() -> Iterator[None]:
    """Let builders take no locks, which would fail on file systems that have none.

    They need none: nobody else knows the directory, and our own lock keeps other runs from the same work.
    """
    datasets.builder.FileLock = contextlib.nullcontext
    try:
        yield
    finally:
        datasets.builder.FileLock = FILE_LOCK


@contextlib.contextmanager
def _original_errors() -> Iterator[None]:
    """Raise the errors of reading, tokenizing and writing as they are: builders replace them by errors of their own."""
    try:
        yield
    except DatasetGenerationError as error:
        raise error.__cause__ or error from None
    except OSError as error:  # of an error without a number, only the text is left
        raise (error if error.errno is not None else error.__context__ or error) from None
