"""Tokenizers read from all their files: the same ids and text as AutoTokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import FABLES
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from gpt2tg.checkpoint.find import find_directory
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.checkpoint.tokenizer_loading import load_tokenizer
from gpt2tg.errors import UserError

ROWS = 310

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1042301\n"

TEXTS = [
    "The owl sold silence.",
    " The  owl ",
    "<sep>The owl <sep> sold<pad>",
    "<s>an <x y> owl</s>",
    "the end<|endoftext|>and after <|endoftext|>",
    "nothing<sep>owl<X>",
    "naïve 🦊 猫\n\n",
]


def token(content: str, **flags: bool) -> dict[str, object]:
    """Return a token in the form of tokenizer_config.json and special_tokens_map.json."""
    return {"content": content, **dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False), **flags}


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def write_tokenizer_json(directory: Path, raw: Tokenizer, *added: dict[str, object], **parts: object) -> None:
    """Write tokenizer.json with additional tokens and changed parts."""
    content = json.loads(raw.to_str())
    content["added_tokens"] += [{"id": 300 + number, "special": True, **token} for number, token in enumerate(added)]
    write(directory / "tokenizer.json", {**content, **parts})


def write_vocab_and_merges(directory: Path, raw: Tokenizer, **settings: object) -> None:
    """Write vocab.json, merges.txt and tokenizer_config.json."""
    raw.model.save(str(directory))
    write(directory / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", **settings})


def added_tokens(directory: Path, raw: Tokenizer) -> None:
    write_vocab_and_merges(directory, raw)
    write(directory / "added_tokens.json", {"<s>": 300, "<pad>": 301, "<x y>": 302})
    write(directory / "special_tokens_map.json", {"bos_token": "<s>", "pad_token": token("<pad>")})


def added_tokens_decoder(directory: Path, raw: Tokenizer) -> None:
    listed = {"0": token("<|endoftext|>", special=True), "300": token("<sep>", lstrip=True, rstrip=True, special=True)}
    listed["301"] = token("owl", single_word=True, normalized=True, special=False)
    write_vocab_and_merges(directory, raw, added_tokens_decoder=listed, sep_token="<sep>")


def names_alone(directory: Path, raw: Tokenizer) -> None:
    write_vocab_and_merges(
        directory, raw, additional_special_tokens=["<sep>", "<X>"], pad_token=token("<pad>", __type="AddedToken")
    )


def space_before_words(directory: Path, raw: Tokenizer) -> None:
    write_vocab_and_merges(directory, raw, add_prefix_space=True)


def begin_token(directory: Path, raw: Tokenizer) -> None:
    write_vocab_and_merges(directory, raw, add_bos_token=True, bos_token="<s>")


def class_goes_before_file(directory: Path, raw: Tokenizer) -> None:
    write_tokenizer_json(
        directory, raw, pre_tokenizer={**json.loads(raw.to_str())["pre_tokenizer"], "add_prefix_space": False}
    )
    write(directory / "tokenizer_config.json", {"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": True})


def split_special(directory: Path, raw: Tokenizer) -> None:
    write_tokenizer_json(directory, raw, token("<sep>"))
    write(directory / "tokenizer_config.json", {"tokenizer_class": "TokenizersBackend", "split_special_tokens": True})


def beside_the_file(directory: Path, raw: Tokenizer) -> None:
    write_tokenizer_json(directory, raw, token("<sep>", special=False))
    settings = {"sep_token": "<sep>", "eos_token": "</s>", "image_token": "<X>", "extra_special_tokens": ["<x y>"]}
    write(directory / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **settings})


def template(directory: Path, raw: Tokenizer) -> None:
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {"<s>": {"id": "<s>", "ids": [300], "tokens": ["<s>"]}}
    processor = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": special}
    processor["pair"] = [{"Sequence": {"id": which, "type_id": 0}} for which in "AB"]
    write_tokenizer_json(directory, raw, token("<s>"), post_processor=processor)
    write(directory / "tokenizer_config.json", {"tokenizer_class": "TokenizersBackend", "bos_token": "<s>"})


KINDS = [
    added_tokens, added_tokens_decoder, names_alone, space_before_words, begin_token, class_goes_before_file,
    split_special, beside_the_file, template,
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_text_are_those_of_transformers(
    kind: Callable[[Path, Tokenizer], None], tokenizer: TextTokenizer, model_dir: Path, tmp_path: Path
) -> None:
    kind(tmp_path, tokenizer.raw)
    (tmp_path / "config.json").write_bytes((model_dir / "config.json").read_bytes())
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True), load_tokenizer(tmp_path, ROWS)
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ours.encode_prompt(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def bert_directory(directory: Path, **settings: object) -> Path:
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    lines = [line.lower() for line in FABLES]
    raw.train_from_iterator(
        lines, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    )
    names = sorted(raw.get_vocab(), key=raw.get_vocab().get)
    (directory / "vocab.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    write(directory / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", **settings})
    write(directory / "config.json", {"model_type": "gpt2"})
    return directory


def test_incomplete_vocabulary_beside_a_complete_one_is_ignored(tmp_path: Path) -> None:
    expected = load_tokenizer(bert_directory(tmp_path), ROWS).raw.get_vocab()
    write(tmp_path / "vocab.json", {"a": 0})
    assert load_tokenizer(tmp_path, ROWS).raw.get_vocab() == expected


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
def test_git_lfs_pointer_of_settings_is_named(tmp_path: Path, name: str) -> None:
    settings = bert_directory(tmp_path) / "tokenizer_config.json"
    if name in ("special_tokens_map.json", "added_tokens.json"):  # read where the settings do not list the tokens
        assert "added_tokens_decoder" not in settings.read_text()
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(UserError, match=f"{name} is a Git LFS pointer.*git lfs pull"):
        find_directory(str(tmp_path))


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer.json"])
def test_git_lfs_pointer_of_a_vocabulary_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path / "config.json", {"model_type": "gpt2"})
    for file in ("vocab.json", "merges.txt", name):
        (tmp_path / file).write_text(POINTER if file == name else "{}")
    with pytest.raises(UserError, match=f"{name} is a Git LFS pointer.*git lfs pull"):
        find_directory(str(tmp_path))


@pytest.mark.parametrize("settings", [{}, {"do_lower_case": False}, {"clean_up_tokenization_spaces": True}])
def test_vocabulary_of_bert_is_read(tmp_path: Path, settings: dict[str, object]) -> None:
    """A prompt begins with [CLS], but does not end with [SEP], because it is to be continued."""
    directory = bert_directory(tmp_path, **settings)
    theirs, ours = AutoTokenizer.from_pretrained(directory, local_files_only=True), load_tokenizer(directory, ROWS)
    for text in ("The owl sold silence, it's early.", "nobody zzz ' rope", "Two[SEP]bells"):
        *ids, last = theirs(text)["input_ids"]
        assert (ours.encode_prompt(text), ours.end_id) == (ids, last)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", ["</s>", token("</s>", __type="AddedToken")], ids=["name", "object"])
def test_end_of_text_is_read_from_tokenizer_config(tokenizer: TextTokenizer, tmp_path: Path, name: object) -> None:
    content = tokenizer.raw.to_str().replace("<|endoftext|>", "</s>")
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    write(tmp_path / "tokenizer_config.json", {"tokenizer_class": "TokenizersBackend", "eos_token": name})
    found = load_tokenizer(tmp_path, ROWS)
    assert (found.end_id, found.special, found.notes) == (0, {0: "</s>"}, ())


def test_ordinary_word_as_end_of_text_is_noted(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.raw.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path / "tokenizer_config.json", {"tokenizer_class": "TokenizersBackend", "eos_token": "<|endoftext|>"})
    word = tokenizer.encode("owl the")[-1]
    assert word not in tokenizer.special
    found = load_tokenizer(tmp_path, ROWS, [word])
    assert found.end_id == 0
    assert f"id {word}" in found.notes[0]
    assert "<|endoftext|>" in found.notes[0]
    assert load_tokenizer(tmp_path, ROWS, [0, word]).notes == ()


def test_special_tokens_without_a_row_are_left_out_and_noted(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    write_vocab_and_merges(tmp_path, tokenizer.raw, pad_token="[PAD]", sep_token="<sep>")
    found = load_tokenizer(tmp_path, 301)
    assert found.encode("<sep>[PAD]") == [300, *tokenizer.encode("[PAD]")]
    assert "[PAD]" in found.notes[0]
    assert "<sep>" not in found.notes[0]


def test_contradictory_ids_are_noted(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    write_vocab_and_merges(tmp_path, tokenizer.raw)
    write(tmp_path / "added_tokens.json", {"<sep>": 305})
    found = load_tokenizer(tmp_path, ROWS)
    assert found.encode("<sep>") == [300]
    assert "<sep>" in found.notes[0]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", "{"),
        ("special_tokens_map.json", "[]"),
        ("added_tokens.json", '{"<sep>": "x"}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"300": 5}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}'),
    ],
)
def test_broken_settings_file_is_named(tokenizer: TextTokenizer, tmp_path: Path, name: str, content: str) -> None:
    write_vocab_and_merges(tmp_path, tokenizer.raw)
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        load_tokenizer(tmp_path, ROWS)
