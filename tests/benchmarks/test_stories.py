"""benchmarks/stories.py: what it counts as a repeated sentence, and bits per byte."""

from __future__ import annotations

import math

import pytest
import stories
from transformers import AutoTokenizer

from gpt2tg.checkpoint.find import BUNDLED_DIRECTORY
from gpt2tg.generation.generator import load


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("The king had a son. The king had a daughter.", False),
        ("The king had a son. He wept. The king had a son.", True),
        ('"I will go with you," he said. I WILL go, with you he said!', True),
        ("The fox ran away\nThe fox ran away", True),
        ('"Yes," he said. "No," he said. "Yes," he said.', False),  # too short to count
        ("The fox ran away and the fox ran away and the fox ran away.", False),  # one sentence, a loop within it
        ("", False),
    ],
)
def test_repeated_sentences_are_found(text: str, repeats: bool) -> None:
    assert stories.repeats_sentence(text) is repeats


def test_bits_per_byte_count_what_ends_a_line() -> None:
    """A bit per token, for an end token and a line break too."""
    lines = ["The fox ran.", "Zürich 1893"]
    tokens = AutoTokenizer.from_pretrained(BUNDLED_DIRECTORY, local_files_only=True)(lines)["input_ids"]
    expected = sum(len(ids) + 1 for ids in tokens) / (len("The fox ran.\n") + len("Zürich 1893\n") + 1)
    assert stories.bits_per_byte_of(math.log(2), load("gpt2-tiny", "cpu"), lines) == pytest.approx(expected)
