"""Choose examples: at most so many, without copies, and how often each is seen in an epoch."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from glob import has_magic, iglob
from pathlib import Path

import numpy as np

from gpt2tg.errors import UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.training.data.corpus import Corpus
from gpt2tg.training.data.input_files import find_files
from gpt2tg.training.data.split import Split, choose_held_out

# The name of a file, and how often its examples are seen in an epoch: novels.txt=3
WEIGHTED = re.compile(r"(.+)=(\d{1,6}(?:\.\d{1,6})?)", re.DOTALL)
LARGEST_WEIGHT = 1000


@dataclass(frozen=True)
class WeightedName:
    """What the user gave as --train_file: a file, a folder or a pattern, and a weight if there was one."""

    name: str
    weight: float | None = None


def read_weight(given: str, option: str = "train_file") -> WeightedName:
    """Read `novels.txt=3`. A file, folder or pattern that exists under the whole name has no weight.

    Raises:
        UserError: the weight is 0, or too large.
    """
    match = WEIGHTED.fullmatch(given)
    if match is None or _exists(given):
        return WeightedName(given)
    weight = float(match[2])
    if not 0 < weight <= LARGEST_WEIGHT:
        raise UserError(
            f"{given}: a weight is more than 0 and at most {LARGEST_WEIGHT}: change it, or leave the file out", option
        )
    return WeightedName(match[1], weight)


def _exists(name: str) -> bool:
    path = Path(name).expanduser()
    return path.exists() or (has_magic(name) and next(iglob(str(path), recursive=True), None) is not None)


def plain_names(given: Iterable[str]) -> tuple[str, ...]:
    """Return the names without weights."""
    return tuple(read_weight(one).name for one in given)


def hold_out(corpus: Corpus, options: TrainingOptions) -> Split:
    """Choose the held-out examples; with --drop_copies among those that are no copies.

    A single example is not split here.
    """
    share, seed = options.validation_split, options.seed_of_split
    may_cut = corpus.chat_template is None  # half a conversation has no question
    if not options.drop_copies:
        return choose_held_out(corpus.hashes, corpus.sizes, share, seed, may_cut)
    kept = np.flatnonzero(first_copies(corpus.hashes))
    if len(kept) < 2:
        return Split()
    found = choose_held_out(corpus.hashes[kept], corpus.sizes[kept], share, seed, may_cut)
    return Split(kept[found.whole], kept[found.partial])


def first_copies(hashes: np.ndarray) -> np.ndarray:
    """Return which examples are the first of their copies. (examples,) bool

    Args:
        hashes: (examples,) equal for equal examples.
    """
    order = np.argsort(hashes, kind="stable")
    is_first = np.empty(len(hashes), dtype=bool)
    ordered = hashes[order]
    is_first[order] = np.r_[True, ordered[1:] != ordered[:-1]]
    return is_first


def training_times(corpus: Corpus, split: Split, options: TrainingOptions) -> np.ndarray | None:
    """Return how often each example is learned from in an epoch. (examples,) int64; None if each is once.

    Raises:
        UserError: a single example has a weight, or the weights leave no example.
    """
    is_held_out = np.zeros(corpus.examples, dtype=bool)
    is_held_out[split.whole] = True
    times = _limited(corpus, ~is_held_out, options.max_train_examples, options)
    weights = _weights_of_files(corpus, options)
    if weights is None:
        return times
    if corpus.examples == 1:
        raise UserError(f"{options.train_file[0]}: the text is a single example: raise --epochs instead", "train_file")
    times = ~is_held_out if times is None else times
    times = _weighted(times > 0, np.repeat(weights, corpus.file_examples), corpus.file_examples, options)
    if not times.any():
        raise UserError("has weights that leave no example: raise them", "train_file")
    return times


def _limited(corpus: Corpus, on_this_side: np.ndarray, most: int | None, options: TrainingOptions) -> np.ndarray | None:
    """Return 1 for the examples to keep and 0 for others, (examples,) int64; None if all are kept.

    Args:
        on_this_side: (examples,) bool
        most: how many to keep.
    """
    kept = on_this_side & first_copies(corpus.hashes) if options.drop_copies else on_this_side
    if not options.drop_copies and (most is None or most >= np.count_nonzero(kept)):
        return None
    times: np.ndarray = at_most(kept, most, options.seed_of_split).astype(np.int64)
    return times


def validation_times(corpus: Corpus, options: TrainingOptions) -> np.ndarray | None:
    """Return 0 for the copies that are dropped from a validation file, 1 for all else; None if all are kept."""
    return _limited(corpus, np.ones(corpus.examples, dtype=bool), None, options)


def at_most(chosen: np.ndarray, most: int | None, seed: int) -> np.ndarray:
    """Return the chosen examples, or as many of them as may be, drawn at random.

    Args:
        chosen: (examples,) bool
    """
    numbers = np.flatnonzero(chosen)
    if most is None or most >= len(numbers):
        return chosen
    kept = np.zeros_like(chosen)
    kept[numbers[_shuffled(len(numbers), seed)[:most]]] = True
    return kept


def _shuffled(count: int, seed: int) -> np.ndarray:
    """Return the numbers below `count` in random order."""
    keys = np.frombuffer(random.Random(f"{seed}/examples").randbytes(8 * count), dtype="<u8")
    return np.argsort(keys, kind="stable")


def _weighted(
    kept: np.ndarray, weights: np.ndarray, file_examples: Sequence[int], options: TrainingOptions
) -> np.ndarray:
    """Return how often each example is seen: its weight, rounded up for as many as the fraction asks for.

    Args:
        kept: (examples,) bool
        weights: (examples,) of the file of each.
    """
    times: np.ndarray = np.floor(weights).astype(np.int64) * kept
    start = 0
    for count in file_examples:
        numbers = start + np.flatnonzero(kept[start : start + count])
        if len(numbers):
            more = int(np.floor(weights[start] % 1 * len(numbers) + 0.5))
            times[numbers[_shuffled(len(numbers), options.seed_of_split)[:more]]] += 1
        start += count
    return times


def _weights_of_files(corpus: Corpus, options: TrainingOptions) -> np.ndarray | None:
    """Return the weight of each file, (files,); None if none was given. The last weight of a file counts."""
    given = [read_weight(one) for one in options.train_file]
    if all(one.weight is None for one in given):
        return None
    weights: dict[tuple[int, int], float] = {}
    for name, weight in ((one.name, one.weight) for one in given if one.weight is not None):
        for path in find_files((name,), "train_file", Path(options.output_dir)):
            weights[_identity(path)] = weight
    return np.array([weights.get(_identity(path), 1.0) for path in corpus.files])


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def repeat_in_passes(starts: np.ndarray, ends: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Repeat spans as often as asked for: all of them, then those that come twice, and so on.

    So that no copy follows its original, unless the text has nothing else.

    Args:
        starts, ends, times: (spans,)
    """
    passes = [np.flatnonzero(times > number) for number in range(int(times.max(initial=0)))]
    order = np.concatenate(passes) if passes else np.empty(0, dtype=np.int64)
    return starts[order], ends[order]


def selection_notices(corpus: Corpus, times: np.ndarray | None, options: TrainingOptions) -> list[str]:
    """Return what the user should know about the selection."""
    found = []
    if options.drop_copies:
        copies = corpus.examples - int(first_copies(corpus.hashes).sum())
        found.append(f"{copies:,} of {corpus.examples:,} examples are copies of others, and dropped")
    if times is not None and options.max_train_examples:
        found.append(f"learning from {int((times > 0).sum()):,} of {corpus.examples:,} examples")
    if times is not None and int(times.max(initial=0)) > 1:
        found.append(f"with their weights, {int(times.sum()):,} examples are seen in an epoch")
    return found
