"""--add_tokens: the new tokens are single tokens, their rows are trained and saved, and transformers reads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import random_model
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoTokenizer, GPT2LMHeadModel

from gpt2tg.checkpoint.added_tokens import with_new_tokens
from gpt2tg.checkpoint.tokenizer_loading import load_tokenizer
from gpt2tg.engine.contexts import new_context
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import load
from gpt2tg.options import TrainingOptions
from gpt2tg.training.finetune import finetune
from gpt2tg.training.model.new_tokens import add_tokens

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

NEW = ("<|user|>", "<|bot|>")
IDS = [[5, 300, 7, 33, 301, 250, 3]]


def chat(text_file: Path, directory: Path) -> str:
    path = directory / "chat.txt"
    path.write_text("".join(f"<|user|>{line}<|bot|> aye\n" for line in text_file.read_text().splitlines()))
    return str(path)


def options(text: str, out: Path, **settings: object) -> TrainingOptions:
    defaults = dict(
        block_size=16, batch_size=4, max_steps=4, save_steps=2, learning_rate=1e-2, keep="last", save_total_limit=0
    )
    return TrainingOptions(train_file=text, output_dir=str(out), **{"add_tokens": NEW, **defaults, **settings})


def transformers_logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.tensor(IDS)).logits[0, -1]


def our_logits(directory: Path) -> torch.Tensor:
    return new_context(load(directory).model, 64).start(IDS)[0]


@pytest.mark.parametrize("rows", [300, 301, 320])
@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_the_mean_of_the_others(model_dir: Path, rows: int, tied: bool) -> None:
    """Rows that padded the embedding are used first, as transformers does."""
    model = random_model(vocab_size=rows, tie_word_embeddings=tied)
    before = [layer.weight.detach().clone() for layer in (model.transformer.wte, model.lm_head)]
    tokenizer = load_tokenizer(model_dir, rows)
    assert add_tokens(model, tokenizer, [*NEW, NEW[0], "a"]) == {300: NEW[0], 301: NEW[1]}
    assert model.config.vocab_size == max(rows, 302)
    for layer, old in zip((model.transformer.wte, model.lm_head), before, strict=True):
        expected = old[:300].mean(dim=0).expand(2, -1)
        torch.testing.assert_close(layer.weight[300:302].detach(), expected)
        assert (layer.weight[:300] == old[:300]).all()
        assert (layer.weight[302:] == old[302:]).all()
    assert add_tokens(model, tokenizer, NEW) == {}


@pytest.mark.parametrize("form", ["tokenizer.json", "decoder", "vocab.json"])
def test_files_hold_the_new_tokens_for_transformers_too(model_dir: Path, tmp_path: Path, form: str) -> None:
    files = {name: (model_dir / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    stored = json.loads(files["tokenizer.json"])
    if form == "decoder":
        settings = json.loads(files["tokenizer_config.json"])
        settings["added_tokens_decoder"] = {"0": {"content": "<|endoftext|>", "special": True}}
        files["tokenizer_config.json"] = json.dumps(settings).encode()
    if form == "vocab.json":
        merges = "".join(" ".join(pair) + "\n" for pair in stored["model"]["merges"])
        files = {"vocab.json": json.dumps(stored["model"]["vocab"]).encode(), "merges.txt": merges.encode()}
        files["tokenizer_config.json"] = b'{"tokenizer_class": "GPT2Tokenizer"}'
    for name, content in with_new_tokens(files, {300: NEW[0], 301: NEW[1]}).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    text = "A fox<|user|> counted<|bot|>"
    expected = AutoTokenizer.from_pretrained(tmp_path).encode(text)
    assert expected.count(300) == expected.count(301) == 1
    found = load_tokenizer(tmp_path, 302)
    assert found.encode(text) == expected
    assert found.decode(expected) == text


def test_adapter_trains_the_rows_of_new_tokens(text_file: Path, model_dir: Path, tmp_path: Path) -> None:
    """The merged model, the adapter, the checkpoint and the resumed run are the same model, and peft reads it."""
    out, text = tmp_path / "out", chat(text_file, tmp_path)
    finetune(options(text, out, lora=True, use_dora=True, sample_steps=4, num_samples=1), str(model_dir))
    base = GPT2LMHeadModel.from_pretrained(model_dir, local_files_only=True)
    base.resize_token_embeddings(302, mean_resizing=False)
    expected = transformers_logits(PeftModel.from_pretrained(base, out / "adapter"))
    for directory in (out, out / "adapter", out / "checkpoint-4"):
        torch.testing.assert_close(our_logits(directory), expected, atol=1e-4, rtol=0)
    embedding = load_file(out / "model.safetensors")["transformer.wte.weight"]
    original = load_file(model_dir / "model.safetensors")["transformer.wte.weight"]
    assert (embedding[:300] == original).all(), "the others are frozen"
    assert (embedding[300:] - original.mean(dim=0)).abs().max(dim=1).values.min() > 1e-3, "the new ones are trained"
    again = shutil.copytree(out, tmp_path / "again")
    shutil.rmtree(again / "checkpoint-4")
    finetune(options(text, again, lora=True, use_dora=True, resume=str(again / "checkpoint-2")), str(model_dir))
    one, other = (load_file(place / "checkpoint-4" / "adapter_model.safetensors") for place in (out, again))
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)


def test_new_tokens_are_trained_and_saved(text_file: Path, model_dir: Path, tmp_path: Path) -> None:
    out, text = tmp_path / "out", chat(text_file, tmp_path)
    finetune(options(text, out, max_steps=2), str(model_dir))
    theirs = GPT2LMHeadModel.from_pretrained(out, local_files_only=True)
    assert theirs.config.vocab_size == 302
    torch.testing.assert_close(our_logits(out), transformers_logits(theirs), atol=1e-4, rtol=0)
    assert AutoTokenizer.from_pretrained(out).encode("<|user|><|bot|>") == [300, 301]
    with pytest.raises(UserError, match=r"vocab_size 302.* then, vocab_size 300.* --add_tokens of the first run"):
        finetune(options(text, out, resume="newest", max_steps=3, add_tokens=()), str(model_dir))


def test_new_model_has_the_tokens(text_file: Path, tmp_path: Path) -> None:
    out, text = tmp_path / "out", chat(text_file, tmp_path)
    sizes = dict(from_scratch=True, vocab_size=300, n_layer=1, n_embd=16, n_head=2, n_positions=32)
    finetune(options(text, out, **sizes, max_steps=2), "gpt2")
    finetune(options(text, out, **sizes, max_steps=3, resume="newest"), "gpt2")
    found = load(out)
    assert found.tokenizer.encode("<|user|><|bot|>") == [300, 301]
    assert found.model.shape.vocab_size == 302


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"freeze_layers": 1}, "freezes the embeddings"), ({"add_tokens": ("",)}, "holds an empty token")],
)
def test_contradictions_are_refused(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainingOptions(train_file="a.txt", **{"add_tokens": NEW, **settings})
