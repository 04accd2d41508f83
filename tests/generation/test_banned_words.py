"""Banned words that are white space, which many tokens contain."""

from __future__ import annotations

import pytest

from gpt2tg.generation.generator import Generator, load
from gpt2tg.options import decoding_options


@pytest.fixture(scope="module")
def bundled() -> Generator:
    return load("gpt2-tiny")


@pytest.mark.parametrize("word", ["\n", "\t", " ", "  ", "\n\n", "\n\n\n", " king", "\nThe"])
def test_banned_white_space_is_never_generated(bundled: Generator, word: str) -> None:
    """The prompt and a bias on line breaks and spaces make the banned words as probable as possible."""
    options = decoding_options(
        {"decoding": "sample", "temperature": 1.5, "max_new_tokens": 40, "seed": 3, "num_sequences": 4}
        | {"bias": ("\n=+4", "\n\n=+4", " =+2", "\nThe=+4"), "ban_words": (word,)}
    )
    samples = bundled.generate('The end.\n\n"What?"  he said.\n', options)
    texts = [sample.prompt[-1:] + sample.completion for sample in samples]
    assert not any(word in text[len(word) == 1 :] for text in texts)
    assert all(len(sample.ids) > 5 for sample in samples)
