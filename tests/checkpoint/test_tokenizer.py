"""Text to token ids and back."""

from __future__ import annotations

import pytest
from sample_texts import RANDOM_TEXTS, TEXTS

from gpt2tg.checkpoint.tokenizer import TextTokenizer


@pytest.mark.parametrize("text", [*[text for text in TEXTS if "<|endoftext|>" not in text], *RANDOM_TEXTS])
def test_decoding_inverts_encoding(tokenizer: TextTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_end_of_text_is_dropped_when_decoding(tokenizer: TextTokenizer) -> None:
    owl, fox = tokenizer.encode("an owl"), tokenizer.encode(" a fox")
    assert tokenizer.decode([0, *owl, 0, *fox, 0, 0]) == "an owl a fox"


def test_invalid_bytes_become_the_replacement_character(tokenizer: TextTokenizer) -> None:
    """The first three of four bytes become one U+FFFD (Unicode, chapter 3.9, U+FFFD Substitution)."""
    fox = tokenizer.encode("🦊")
    assert len(fox) == 4
    assert tokenizer.decode(fox[:3]) == "\N{REPLACEMENT CHARACTER}"
    assert tokenizer.decode(fox[1:2]) == "\N{REPLACEMENT CHARACTER}"
