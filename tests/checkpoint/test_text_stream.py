"""Incremental decoding: pieces of complete characters that add up to the decoded whole."""

from __future__ import annotations

import random

import pytest
from sample_texts import RANDOM_TEXTS, TEXTS
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel

from gpt2tg.checkpoint.text_stream import TextStream
from gpt2tg.checkpoint.tokenizer import TextTokenizer


def stream(tokenizer: TextTokenizer, ids: list[int]) -> tuple[list[str], str]:
    """Return the piece of text for each id, and the text that `finish` returns."""
    streamed = TextStream(tokenizer)
    return [streamed.push(token) for token in ids], streamed.finish()


@pytest.mark.parametrize("text", TEXTS + RANDOM_TEXTS)
def test_pieces_add_up_to_the_text(tokenizer: TextTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    pieces, rest = stream(tokenizer, ids)
    assert "".join(pieces) + rest == tokenizer.decode(ids) == text.replace("<|endoftext|>", "")


@pytest.mark.parametrize("text", RANDOM_TEXTS)
def test_pieces_are_complete_characters(tokenizer: TextTokenizer, text: str) -> None:
    pieces, rest = stream(tokenizer, tokenizer.encode(text))
    assert [piece for piece in pieces if "\N{REPLACEMENT CHARACTER}" in piece] == []
    assert rest == ""


@pytest.mark.parametrize("seed", range(20))
def test_pieces_of_random_ids_add_up_to_the_decoded_text(tokenizer: TextTokenizer, seed: int) -> None:
    """Most byte sequences are invalid UTF-8 here, and end-of-text tokens stand within characters."""
    rng = random.Random(seed)
    ids = [rng.choice([0, rng.randrange(1, 257), rng.randrange(300)]) for _ in range(60)]
    pieces, rest = stream(tokenizer, ids)
    assert "".join(pieces) + rest == tokenizer.decode(ids)


def test_character_of_four_tokens_is_held_back_until_complete(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("a🦊b")
    assert len(ids) == 6
    assert stream(tokenizer, ids) == (["a", "", "", "", "🦊", "b"], "")


def test_complete_text_is_returned_at_once(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("the owl's scales\n\nsold")
    assert stream(tokenizer, ids) == ([tokenizer.decode([token]) for token in ids], "")


def test_end_of_text_gives_an_empty_piece(tokenizer: TextTokenizer) -> None:
    a, b = tokenizer.encode("ab")
    assert stream(tokenizer, [a, 0, 0, b, 0]) == (["a", "", "", "b", ""], "")


@pytest.mark.parametrize("length", [1, 2, 3])
def test_finish_returns_an_incomplete_character(tokenizer: TextTokenizer, length: int) -> None:
    ids = [*tokenizer.encode("a"), *tokenizer.encode("🦊")[:length]]
    pieces, rest = stream(tokenizer, ids)
    assert "".join(pieces) == "a"
    assert "a" + rest == tokenizer.decode(ids) == "a\N{REPLACEMENT CHARACTER}"


def test_invalid_character_is_returned_with_the_next_text(tokenizer: TextTokenizer) -> None:
    ids = [*tokenizer.encode("🦊")[:2], *tokenizer.encode("b")]
    assert stream(tokenizer, ids) == (["", "", "\N{REPLACEMENT CHARACTER}b"], "")


def test_finish_returns_nothing_the_second_time(tokenizer: TextTokenizer) -> None:
    streamed = TextStream(tokenizer)
    streamed.push(tokenizer.encode("🦊")[0])
    assert streamed.finish() == "\N{REPLACEMENT CHARACTER}"
    assert streamed.finish() == ""


def test_empty_stream_has_no_text(tokenizer: TextTokenizer) -> None:
    assert TextStream(tokenizer).finish() == ""


@pytest.mark.parametrize(
    ("ids", "pieces"),
    [([1, 2, 1], ["one", " two", " one"]), ([1, 0, 2], ["one", "", " two"])],
    ids=["words", "an end between them"],
)
def test_decoder_that_treats_the_first_token_specially(ids: list[int], pieces: list[str]) -> None:
    """Metaspace drops the space before a first word, and so before any word that is decoded alone."""
    raw = Tokenizer(WordLevel({"<|endoftext|>": 0, "▁one": 1, "▁two": 2}, unk_token="<|endoftext|>"))
    raw.add_special_tokens(["<|endoftext|>"])
    raw.decoder = decoders.Metaspace()
    words = TextTokenizer(raw, 0)
    assert words.decode(ids) == "".join(pieces)
    assert stream(words, ids) == (pieces, "")
