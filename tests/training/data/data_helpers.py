"""Load training data from a few lines of text, and look at what was packed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.options import TrainingOptions
from gpt2tg.training.data.sources import plan_sources
from gpt2tg.training.data.training_data import TrainingData, load_data

EXAMPLES = ["The owl sold silence.", "  indented, with an end  ", "naïve 猫 🦊 e\u0301", "x", "A fox counted. " * 30]


def write(directory: Path, lines: list[str], name: str = "train.txt") -> Path:
    path = directory / name
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return path


def numbered(count: int, subject: str = "fable") -> list[str]:
    return [f"{subject} {number}" for number in range(count)]


def load(path: Path, tokenizer: TextTokenizer, **settings: Any) -> TrainingData:
    options = TrainingOptions(train_file=str(path), **{"validation_split": 0, **settings})
    return load_data(plan_sources(options), tokenizer, options)


def rows(dataset: Dataset | None) -> list[list[int]]:
    assert dataset is not None
    return [row["input_ids"].tolist() for row in dataset]


def ids_of(dataset: Dataset | None) -> list[int]:
    return [token for row in rows(dataset) for token in row]


def texts_of(dataset: Dataset | None, tokenizer: TextTokenizer) -> list[str]:
    """Return the examples that were packed."""
    return tokenizer.raw.decode(ids_of(dataset), skip_special_tokens=False).split("<|endoftext|>")[:-1]


def encode_by_hand(examples: list[str], tokenizer: TextTokenizer) -> list[int]:
    ids: list[int] = []
    for example in examples:
        ids += tokenizer.encode(example)
        ids.append(tokenizer.end_id)
    return ids


def cut_by_hand(ids: list[int], block_size: int) -> list[list[int]]:
    blocks = [ids[start : start + block_size] for start in range(0, len(ids), block_size)]
    if len(blocks[-1]) == 1:
        blocks[-1].insert(0, blocks[-2].pop())
    return blocks


def held_out_texts(path: Path, seed: int) -> list[str]:
    _, measured = plan_sources(TrainingOptions(train_file=str(path), seed=seed))
    assert measured is not None
    return [piece.text for piece in measured]


def stories(directory: Path, lengths: list[int]) -> tuple[Path, list[str]]:
    """Write files of these numbers of words, all different."""
    rng = random.Random(1)
    texts = [" ".join(str(rng.randrange(1000)) for _ in range(length)) + "\n" for length in lengths]
    for number, content in enumerate(texts):
        (directory / f"{number:02}.txt").write_text(content)
    return directory, texts
