"""Text to token ids and back."""

from __future__ import annotations

import pytest
from sample_texts import RANDOM_TEXTS, TEXTS

from gpt2tg.checkpoint.tokenizer import TextTokenizer


@pytest.mark.parametrize("text", [*[text for text in TEXTS if "<|endoftext|>" not in text], *RANDOM_TEXTS])
def test_a_text_comes_back_from_its_ids(tokenizer: TextTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_end_of_text_leaves_no_trace_in_the_text(tokenizer: TextTokenizer) -> None:
    owl, fox = tokenizer.encode("an owl"), tokenizer.encode(" a fox")
    assert tokenizer.decode([0, *owl, 0, *fox, 0, 0]) == "an owl a fox"


def test_bytes_that_are_no_text_are_marked(tokenizer: TextTokenizer) -> None:
    """The first three of four bytes are one broken character: Unicode, chapter 3.9, practice for U+FFFD."""
    fox = tokenizer.encode("🦊")
    assert len(fox) == 4
    assert tokenizer.decode(fox[:3]) == "\N{REPLACEMENT CHARACTER}"
    assert tokenizer.decode(fox[1:2]) == "\N{REPLACEMENT CHARACTER}"
