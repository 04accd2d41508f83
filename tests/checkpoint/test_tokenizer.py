"""Text to ids and back as transformers has it, and text from ids that arrive one by one."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, GPT2TokenizerFast

from gpt2tg.checkpoint.tokenizer import TextStream, TextTokenizer, load_tokenizer
from gpt2tg.errors import UserError

TEXTS = [
    "The owl sold silence by the ounce.",
    " leading space",
    "   three leading, and two trailing  ",
    "two\n\nparagraphs\r\nand\ttabs\n",
    "it's they'll we've I'M don't",
    "numbers 3.14 2024 00",
    "naïve café, Zoë",
    "e\u0301 a\u0308o\u0302 \u0915\u094d\u0937",
    "🦊 and 👩‍👩‍👧 and 🇫🇷",
    "フクロウは静けさを売った。猫头鹰出售寂静。",
    "سلام עולם สวัสดี",
    "\u00a0\u2003\u3000|\u200b|\ufeff",
    "zero \0 and bell \a",
    "the end<|endoftext|>and after",
    "<|endoftext|><|endoftext|>",
    "<|endoftext| >",
    "\N{REPLACEMENT CHARACTER} on purpose",
    "",
]


@pytest.fixture
def whole_dir(model_dir: Path, tmp_path: Path) -> Path:
    """A directory with the tokenizer.json that transformers wrote."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model_dir / name, tmp_path)
    return tmp_path


@pytest.fixture
def parts_dir(tokenizer: TextTokenizer, tmp_path: Path) -> Path:
    """A directory with the vocab.json and merges.txt of older checkpoints."""
    tokenizer.raw.model.save(str(tmp_path))
    return tmp_path


def random_text(rng: random.Random, length: int) -> str:
    """Characters of one to four bytes in UTF-8; none of them the sign for a broken one."""
    ranges = [(0x20, 0x7F), (0xA0, 0x800), (0x800, 0xD800), (0xE000, 0xFFFD), (0x1F300, 0x1FAFF), (0x10000, 0x110000)]
    return "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(length))


RANDOM_TEXTS = [pytest.param(random_text(random.Random(seed), 1 + 4 * seed), id=f"random {seed}") for seed in range(20)]


def stream(tokenizer: TextTokenizer, ids: list[int]) -> tuple[list[str], str]:
    """The pieces as the ids arrive, and the rest."""
    streamed = TextStream(tokenizer)
    return [streamed.push(token) for token in ids], streamed.finish()


# --- load_tokenizer ---


@pytest.mark.parametrize("text", TEXTS + RANDOM_TEXTS)
def test_tokenizer_json_gives_the_ids_of_transformers(whole_dir: Path, text: str) -> None:
    theirs = AutoTokenizer.from_pretrained(whole_dir, local_files_only=True)
    assert load_tokenizer(whole_dir, 300, None).encode(text) == theirs(text)["input_ids"]


@pytest.mark.parametrize("text", TEXTS + RANDOM_TEXTS)
def test_vocab_and_merges_give_the_ids_of_transformers(parts_dir: Path, text: str) -> None:
    theirs = GPT2TokenizerFast.from_pretrained(parts_dir, local_files_only=True)
    assert load_tokenizer(parts_dir, 300, None).encode(text) == theirs(text)["input_ids"]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_become_the_text_of_transformers(whole_dir: Path, text: str) -> None:
    theirs = AutoTokenizer.from_pretrained(whole_dir, local_files_only=True)
    ids = theirs(text)["input_ids"]
    assert load_tokenizer(whole_dir, 300, None).decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_tokenizer_json_goes_before_the_older_files(whole_dir: Path, tokenizer: TextTokenizer) -> None:
    (whole_dir / "vocab.json").write_text("{}")
    (whole_dir / "merges.txt").write_text("")
    assert load_tokenizer(whole_dir, 300, None).encode("an owl") == tokenizer.encode("an owl")


def test_the_end_of_text_is_found_by_its_name(whole_dir: Path, tokenizer: TextTokenizer) -> None:
    assert load_tokenizer(whole_dir, 300, None).end_id == tokenizer.raw.token_to_id("<|endoftext|>") == 0


def test_the_end_that_the_tokenizer_names_goes_before_the_models_settings(whole_dir: Path) -> None:
    assert load_tokenizer(whole_dir, 300, [7]).end_id == 0


def test_the_models_settings_name_the_end_where_the_tokenizer_does_not(whole_dir: Path) -> None:
    (whole_dir / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "TokenizersBackend"}))
    assert load_tokenizer(whole_dir, 300, [7]).end_id == 7


def test_a_tokenizer_without_an_end_of_text_is_refused(whole_dir: Path) -> None:
    content = (whole_dir / "tokenizer.json").read_text(encoding="utf-8")
    (whole_dir / "tokenizer.json").write_text(content.replace("<|endoftext|>", "<|stop|>"), encoding="utf-8")
    with pytest.raises(UserError, match="end-of-text"):
        load_tokenizer(whole_dir, 300, None)


def test_a_model_may_have_room_for_more_tokens(whole_dir: Path) -> None:
    assert load_tokenizer(whole_dir, 304, None).encode("a") == load_tokenizer(whole_dir, 300, None).encode("a")


def test_more_tokens_than_the_model_has_are_refused(whole_dir: Path) -> None:
    with pytest.raises(UserError, match=r"300 tokens but the model only 299"):
        load_tokenizer(whole_dir, 299, None)


def test_added_tokens_without_a_row_are_left_out_and_named(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    """A padding token that was added without a row for it is in many checkpoints, and does no harm."""
    raw = Tokenizer.from_str(tokenizer.raw.to_str())
    raw.add_tokens([AddedToken("<pad>", special=True)])
    raw.save(str(tmp_path / "tokenizer.json"))
    found = load_tokenizer(tmp_path, 300, None)
    assert found.encode("a<pad>") == tokenizer.encode("a<pad>")
    assert "<pad>" in found.notes[0]


@pytest.mark.parametrize("there", [[], ["vocab.json"], ["merges.txt"]], ids=["none", "vocab", "merges"])
def test_missing_files_are_named(parts_dir: Path, there: list[str]) -> None:
    for name in {"vocab.json", "merges.txt"} - set(there):
        (parts_dir / name).unlink()
    with pytest.raises(UserError, match=r"holds no tokenizer: expected tokenizer\.json, or vocab\.json with merges"):
        load_tokenizer(parts_dir, 300, None)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"no json", b"\xff\xfe\x00", b'{"model": {"type": "BPE"', b"[" * 100_000],
    ids=["empty", "object", "list", "words", "bytes", "cut", "deep"],
)
def test_a_broken_tokenizer_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match="the tokenizer cannot be read") as caught:
        load_tokenizer(tmp_path, 300, None)
    assert str(tmp_path) in caught.value.message


@pytest.mark.parametrize(
    ("name", "content"),
    [("vocab.json", "{"), ("vocab.json", "[]"), ("vocab.json", "{}"), ("merges.txt", "a b c"), ("merges.txt", "ü q")],
)
def test_broken_older_files_are_refused(parts_dir: Path, name: str, content: str) -> None:
    (parts_dir / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="the tokenizer cannot be read"):
        load_tokenizer(parts_dir, 300, None)


def test_stored_padding_and_truncation_change_nothing(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    raw = Tokenizer.from_str(tokenizer.raw.to_str())
    raw.enable_truncation(4)
    raw.enable_padding(length=40)
    raw.save(str(tmp_path / "tokenizer.json"))
    stored = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert stored["truncation"]["max_length"] == 4
    assert stored["padding"]["strategy"] == {"Fixed": 40}
    found = load_tokenizer(tmp_path, 300, None)
    for text in ("a", "The owl sold silence by the ounce."):
        assert found.encode(text) == tokenizer.encode(text)


def test_a_stored_template_adds_nothing(whole_dir: Path, tokenizer: TextTokenizer) -> None:
    """A tokenizer that puts an end-of-text token before every text, as some checkpoints have it."""
    content = json.loads((whole_dir / "tokenizer.json").read_text(encoding="utf-8"))
    end = "<|endoftext|>"
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": end, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {end: {"id": end, "ids": [0], "tokens": [end]}},
    }
    (whole_dir / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert Tokenizer.from_file(str(whole_dir / "tokenizer.json")).encode("owl").ids[0] == 0
    assert load_tokenizer(whole_dir, 300, None).encode("owl") == tokenizer.encode("owl")


# --- encode and decode ---


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


# --- TextStream ---


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


def test_a_vocabulary_with_an_end_token_of_its_own_is_left_as_it_is(tmp_path: Path) -> None:
    """Adding `<|endoftext|>` to it once made the tokenizer larger than its model."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*letters, "</s>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    assert load_tokenizer(tmp_path, 257, [256]).encode("ab") == [vocabulary["a"], vocabulary["b"]]
