"""Files that a fine-tuned model keeps from its base: tokenizer, chat templates, generation settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import random_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.checkpoint.tokenizer_loading import load_tokenizer
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import load
from gpt2tg.options import NEWEST, TrainingOptions
from gpt2tg.training.data.sources import plan_sources
from gpt2tg.training.data.training_data import load_data
from gpt2tg.training.finetune import finetune

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1042301\n"

TEMPLATE = "{{ messages[0]['content'] }}<sep>"


def quick(text_file: Path, output_dir: Path, **settings: object) -> TrainingOptions:
    defaults = dict(block_size=16, batch_size=2, max_steps=2, save_steps=1, validation_split=0)
    return TrainingOptions(train_file=str(text_file), output_dir=str(output_dir), **{**defaults, **settings})


@pytest.fixture(scope="module")
def base(tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with added tokens, two end tokens and a chat template."""
    directory = tmp_path_factory.mktemp("base")
    raw = Tokenizer.from_str(tokenizer.raw.to_str())
    names = ["<s>", "<pad>", "<sep>"]
    raw.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    model = random_model(vocab_size=303, bos_token_id=300, pad_token_id=301)
    model.save_pretrained(directory)
    roles = dict(bos_token="<s>", eos_token="<|endoftext|>", pad_token="<pad>", extra_special_tokens=["<sep>"])
    theirs = PreTrainedTokenizerFast(tokenizer_object=raw, chat_template=TEMPLATE, **roles)
    theirs.save_pretrained(directory)
    settings = {"eos_token_id": [0, 199], "bos_token_id": 300, "pad_token_id": 301, "temperature": 0.7}
    (directory / "generation_config.json").write_text(json.dumps(settings))
    (directory / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<s>", "pad_token": "<pad>"}))
    (directory / "added_tokens.json").write_text(json.dumps({name: 300 + i for i, name in enumerate(names)}))
    (directory / "README.md").write_text("a card of its own")
    return directory


def kept(directory: Path) -> dict[str, bytes]:
    """Return the files that every checkpoint must copy, by name."""
    names = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
    names |= {"chat_template.jinja", "generation_config.json"}
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name in names}


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_fine_tuning_keeps_the_files_of_the_base(base: Path, text_file: Path, tmp_path: Path, lora: bool) -> None:
    """In every checkpoint and in the final model, with an adapter and without, also after a resume."""
    out = tmp_path / "out"
    finetune(quick(text_file, out, lora=lora, max_steps=1), str(base))
    finetune(quick(text_file, out, lora=lora, resume=NEWEST), str(base))
    places = [out, out / "checkpoint-1", out / "checkpoint-2", *([out / "adapter"] if lora else [])]
    assert len(kept(base)) == 6
    for directory in places:
        assert kept(directory) == kept(base)
        config = json.loads((directory / "config.json").read_text())
        assert (config["bos_token_id"], config["pad_token_id"], config["eos_token_id"]) == (300, 301, 0)
    assert "a card of its own" not in (out / "README.md").read_text()
    theirs, before = (AutoTokenizer.from_pretrained(place, local_files_only=True) for place in (out, base))
    assert theirs.apply_chat_template([{"role": "user", "content": "owl"}], tokenize=False) == "owl<sep>"
    assert theirs.special_tokens_map == before.special_tokens_map
    assert theirs("<s>an owl<sep>")["input_ids"] == before("<s>an owl<sep>")["input_ids"]
    assert load(str(out)).model.shape.end_ids == (0, 199)


def test_further_chat_templates_are_kept(base: Path, text_file: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(base, source)
    theirs = AutoTokenizer.from_pretrained(base, local_files_only=True)
    theirs.chat_template = {"default": TEMPLATE, "tool_use": "tools: {{ messages[0]['content'] }}"}
    theirs.save_pretrained(source)
    assert (source / "additional_chat_templates" / "tool_use.jinja").is_file()
    finetune(quick(text_file, out, max_steps=1), str(source))
    assert AutoTokenizer.from_pretrained(out, local_files_only=True).chat_template == theirs.chat_template


def test_git_lfs_pointers_are_not_copied(base: Path, text_file: Path, tmp_path: Path) -> None:
    """A pointer that is not needed is left out; a needed one is an error before anything is written."""
    source, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(base, source)
    (source / "vocab.json").write_text(POINTER)
    finetune(quick(text_file, out, max_steps=1), str(source))
    assert kept(out) == kept(base)
    assert not (out / "vocab.json").exists()
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text(POINTER)
    with pytest.raises(UserError, match=r"tools\.jinja is a Git LFS pointer"):
        finetune(quick(text_file, tmp_path / "other", max_steps=1), str(source))
    assert not (tmp_path / "other").exists()


def test_older_tokenizer_files_are_kept_too(tokenizer: TextTokenizer, text_file: Path, tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    random_model(vocab_size=301).save_pretrained(base)
    tokenizer.raw.model.save(str(base))
    (base / "added_tokens.json").write_text('{"<sep>": 300}')
    finetune(quick(text_file, out, max_steps=1), str(base))
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    theirs = AutoTokenizer.from_pretrained(out, local_files_only=True)
    assert theirs("an owl<sep>")["input_ids"] == load(str(out)).encode("an owl<sep>")


@pytest.mark.parametrize("has_generation_config", [False, True])
def test_end_token_of_the_tokenizer_ends_generated_texts(
    model_dir: Path, text_file: Path, tmp_path: Path, has_generation_config: bool
) -> None:
    """The settings of the base end texts with an ordinary word; the trained model ends with its training token."""
    base, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(model_dir, base)
    word = 290
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "eos_token_id": word}))
    (base / "generation_config.json").unlink()
    if has_generation_config:
        (base / "generation_config.json").write_text(json.dumps({"eos_token_id": word, "top_k": 7}))
    assert 0 in training_ids(load_tokenizer(base, 300, [word]), text_file)
    finetune(quick(text_file, out, max_steps=1), str(base))
    theirs = AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
    assert theirs.config.eos_token_id == theirs.generation_config.eos_token_id == 0
    assert load(str(out)).model.shape.end_ids == (0,)
    if has_generation_config:
        assert theirs.generation_config.top_k == 7


def training_ids(tokenizer: TextTokenizer, path: Path, **settings: object) -> list[int]:
    """Return the ids of a file as training packs them."""
    options = quick(path, Path("-"), block_size=64, **settings)
    return load_data(plan_sources(options), tokenizer, options).train[0]["input_ids"].tolist()


def test_examples_begin_with_the_prefix_of_the_tokenizer(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    raw = Tokenizer.from_str(tokenizer.raw.to_str())
    raw.add_special_tokens(["<s>"])
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 300)])
    (tmp_path / "t.txt").write_text("an owl\ntwo bells\n")
    ids = training_ids(TextTokenizer(raw, 0), tmp_path / "t.txt", examples="line")
    assert ids == [300, *tokenizer.encode("an owl"), 0, 300, *tokenizer.encode("two bells"), 0]


def test_completion_is_encoded_as_a_continuation(tmp_path: Path) -> None:
    """A tokenizer that adds a space before the first word must add none before the completion."""
    words = ["▁the", "▁ow", "ow", "▁", *"theowl"]
    vocabulary = [("<unk>", 0.0), ("</s>", 0.0), *((word, -float(len(words) - i)) for i, word in enumerate(words))]
    raw = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    raw.add_special_tokens(["<unk>", "</s>"])
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = TextTokenizer(raw, 1)
    (tmp_path / "t.jsonl").write_text(json.dumps({"prompt": "the ow", "completion": "l the"}) + "\n")
    ids = training_ids(tokenizer, tmp_path / "t.jsonl")
    assert tokenizer.decode(ids) == "the owl the"
    assert ids[-1] == 1


def test_special_token_in_a_text_is_encoded_as_one_token(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    raw = Tokenizer.from_str(tokenizer.raw.to_str())
    raw.add_special_tokens(["<sep>"])
    (tmp_path / "t.txt").write_text("an<sep>owl\n")
    ids = training_ids(TextTokenizer(raw, 0), tmp_path / "t.txt", examples="line")
    assert ids == [*tokenizer.encode("an"), 300, *tokenizer.encode("owl"), 0]
