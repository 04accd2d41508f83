"""Text from ids that arrive one by one."""

from __future__ import annotations

import random

import pytest
from sample_texts import RANDOM_TEXTS, TEXTS
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel

from gpt2tg.checkpoint.text_stream import TextStream
from gpt2tg.checkpoint.tokenizer import TextTokenizer


def stream(tokenizer: TextTokenizer, ids: list[int]) -> tuple[list[str], str]:
    """The pieces as the ids arrive, and the rest."""
    streamed = TextStream(tokenizer)
    return [streamed.push(token) for token in ids], streamed.finish()


@pytest.mark.parametrize("text", TEXTS + RANDOM_TEXTS)
def test_the_pieces_are_the_text(tokenizer: TextTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    pieces, rest = stream(tokenizer, ids)
    assert "".join(pieces) + rest == tokenizer.decode(ids) == text.replace("<|endoftext|>", "")


@pytest.mark.parametrize("text", RANDOM_TEXTS)
def test_pieces_are_whole_characters(tokenizer: TextTokenizer, text: str) -> None:
    pieces, rest = stream(tokenizer, tokenizer.encode(text))
    assert [piece for piece in pieces if "\N{REPLACEMENT CHARACTER}" in piece] == []
    assert rest == ""


@pytest.mark.parametrize("seed", range(20))
def test_ids_in_any_order_give_the_text_of_all_of_them(tokenizer: TextTokenizer, seed: int) -> None:
    """Most bytes of a random order are no text, and the end-of-text token stands in the midst of characters."""
    rng = random.Random(seed)
    ids = [rng.choice([0, rng.randrange(1, 257), rng.randrange(300)]) for _ in range(60)]
    pieces, rest = stream(tokenizer, ids)
    assert "".join(pieces) + rest == tokenizer.decode(ids)


def test_a_character_of_four_tokens_is_held_back_until_it_is_whole(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("a🦊b")
    assert len(ids) == 6
    assert stream(tokenizer, ids) == (["a", "", "", "", "🦊", "b"], "")


def test_words_come_as_they_are_written(tokenizer: TextTokenizer) -> None:
    """Nothing is held back that is whole: someone reads along."""
    ids = tokenizer.encode("the owl's scales\n\nsold")
    assert stream(tokenizer, ids) == ([tokenizer.decode([token]) for token in ids], "")


def test_the_end_of_text_gives_no_piece(tokenizer: TextTokenizer) -> None:
    a, b = tokenizer.encode("ab")
    assert stream(tokenizer, [a, 0, 0, b, 0]) == (["a", "", "", "b", ""], "")


@pytest.mark.parametrize("length", [1, 2, 3])
def test_an_incomplete_character_at_the_end_comes_last(tokenizer: TextTokenizer, length: int) -> None:
    ids = [*tokenizer.encode("a"), *tokenizer.encode("🦊")[:length]]
    pieces, rest = stream(tokenizer, ids)
    assert "".join(pieces) == "a"
    assert "a" + rest == tokenizer.decode(ids) == "a\N{REPLACEMENT CHARACTER}"


def test_a_character_that_never_gets_whole_comes_with_what_follows(tokenizer: TextTokenizer) -> None:
    ids = [*tokenizer.encode("🦊")[:2], *tokenizer.encode("b")]
    assert stream(tokenizer, ids) == (["", "", "\N{REPLACEMENT CHARACTER}b"], "")


def test_nothing_comes_twice(tokenizer: TextTokenizer) -> None:
    streamed = TextStream(tokenizer)
    streamed.push(tokenizer.encode("🦊")[0])
    assert streamed.finish() == "\N{REPLACEMENT CHARACTER}"
    assert streamed.finish() == ""


def test_an_empty_stream_has_no_text(tokenizer: TextTokenizer) -> None:
    assert TextStream(tokenizer).finish() == ""


@pytest.mark.parametrize(
    ("ids", "pieces"),
    [([1, 2, 1], ["one", " two", " one"]), ([1, 0, 2], ["one", "", " two"])],
    ids=["words", "an end between them"],
)
def test_a_decoder_that_treats_the_first_token_in_its_own_way(ids: list[int], pieces: list[str]) -> None:
    """Metaspace drops the space before the first word, and so the space before any word alone."""
    raw = Tokenizer(WordLevel({"<|endoftext|>": 0, "▁one": 1, "▁two": 2}, unk_token="<|endoftext|>"))
    raw.add_special_tokens(["<|endoftext|>"])
    raw.decoder = decoders.Metaspace()
    words = TextTokenizer(raw, 0)
    assert words.decode(ids) == "".join(pieces)
    assert stream(words, ids) == (pieces, "")
