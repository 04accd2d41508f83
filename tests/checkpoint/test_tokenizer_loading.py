"""Tokenizers loaded from tokenizer.json or older files: the ids of transformers, or a clear refusal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from sample_texts import RANDOM_TEXTS, TEXTS
from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from transformers import AutoTokenizer, GPT2TokenizerFast

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.checkpoint.tokenizer_loading import load_tokenizer
from gpt2tg.errors import UserError


@pytest.fixture
def whole_dir(model_dir: Path, tmp_path: Path) -> Path:
    """Return a directory with the tokenizer.json that transformers wrote."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model_dir / name, tmp_path)
    return tmp_path


@pytest.fixture
def parts_dir(tokenizer: TextTokenizer, tmp_path: Path) -> Path:
    """Return a directory with the vocab.json and merges.txt of older checkpoints."""
    tokenizer.raw.model.save(str(tmp_path))
    return tmp_path


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


def test_tokenizer_json_takes_precedence_over_older_files(whole_dir: Path, tokenizer: TextTokenizer) -> None:
    (whole_dir / "vocab.json").write_text("{}")
    (whole_dir / "merges.txt").write_text("")
    assert load_tokenizer(whole_dir, 300, None).encode("an owl") == tokenizer.encode("an owl")


def test_end_of_text_is_found_by_its_name(whole_dir: Path, tokenizer: TextTokenizer) -> None:
    assert load_tokenizer(whole_dir, 300, None).end_id == tokenizer.raw.token_to_id("<|endoftext|>") == 0


def test_end_named_by_the_tokenizer_takes_precedence(whole_dir: Path) -> None:
    assert load_tokenizer(whole_dir, 300, [7]).end_id == 0


def test_end_of_text_falls_back_to_the_models_settings(whole_dir: Path) -> None:
    (whole_dir / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "TokenizersBackend"}))
    assert load_tokenizer(whole_dir, 300, [7]).end_id == 7


def test_tokenizer_without_end_of_text_is_refused(whole_dir: Path) -> None:
    content = (whole_dir / "tokenizer.json").read_text(encoding="utf-8")
    (whole_dir / "tokenizer.json").write_text(content.replace("<|endoftext|>", "<|stop|>"), encoding="utf-8")
    with pytest.raises(UserError, match="end-of-text"):
        load_tokenizer(whole_dir, 300, None)


def test_embedding_may_have_more_rows_than_tokens(whole_dir: Path) -> None:
    assert load_tokenizer(whole_dir, 304, None).encode("a") == load_tokenizer(whole_dir, 300, None).encode("a")


def test_more_tokens_than_embedding_rows_are_refused(whole_dir: Path) -> None:
    with pytest.raises(UserError, match=r"300 tokens but the model only 299"):
        load_tokenizer(whole_dir, 299, None)


def test_added_tokens_without_a_row_are_left_out_and_noted(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    """Many checkpoints have a padding token without a row in the embedding. It does no harm."""
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
def test_broken_tokenizer_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match="the tokenizer cannot be read") as caught:
        load_tokenizer(tmp_path, 300, None)
    assert str(tmp_path) in caught.value.message


@pytest.mark.parametrize(
    ("name", "content"),
    [("vocab.json", "{"), ("vocab.json", "[]"), ("vocab.json", "{}"), ("merges.txt", "a b c"), ("merges.txt", "ü q")],
)
def test_broken_vocab_or_merges_are_refused(parts_dir: Path, name: str, content: str) -> None:
    (parts_dir / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="the tokenizer cannot be read"):
        load_tokenizer(parts_dir, 300, None)


def test_stored_padding_and_truncation_are_ignored(tokenizer: TextTokenizer, tmp_path: Path) -> None:
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


def test_stored_template_adds_no_ids(whole_dir: Path, tokenizer: TextTokenizer) -> None:
    """In some checkpoints the tokenizer puts an end-of-text token before every text."""
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


def test_vocabulary_with_its_own_end_token_is_not_extended(tmp_path: Path) -> None:
    """Adding `<|endoftext|>` would make the tokenizer larger than its model."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*letters, "</s>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    assert load_tokenizer(tmp_path, 257, [256]).encode("ab") == [vocabulary["a"], vocabulary["b"]]
