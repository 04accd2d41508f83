"""Fine-tuning starts from the function that a checkpoint computes, whichever tool wrote its weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import random_model
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from gpt2tg.checkpoint.checkpoint import read_checkpoint
from gpt2tg.commands.evaluate import evaluate
from gpt2tg.commands.loading import ModelChoice, load_generator
from gpt2tg.engine.contexts import new_context
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import load
from gpt2tg.options import EvaluationOptions, TrainingOptions
from gpt2tg.training.finetune import finetune
from gpt2tg.training.model.build import existing_model

IDS = torch.tensor([[5, 80, 7, 33, 12, 250, 3]])
WTE, HEAD = "transformer.wte.weight", "lm_head.weight"


@pytest.fixture
def weights(model_dir: Path) -> dict[str, Tensor]:
    return load_file(model_dir / "model.safetensors")


def configure(directory: Path, **values: object) -> None:
    config = {**json.loads((directory / "config.json").read_text()), **values}
    (directory / "config.json").write_text(json.dumps(config))


def theirs(directory: Path) -> Tensor:
    """Return the logits by transformers, (T, V)."""
    model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(IDS).logits[0]


def starts_with(directory: Path) -> Tensor:
    """Return the logits of the model that training starts from, (T, V)."""
    model, _ = existing_model(read_checkpoint(directory))
    with torch.no_grad():
        return model.eval()(IDS).logits[0]


def fine_tuned(start: Path, text_file: Path, output: Path, **settings: object) -> Path:
    """Train for one step with a learning rate too small to change anything."""
    quick = dict(block_size=16, batch_size=1, max_steps=1, save_steps=1, learning_rate=1e-12, validation_split=0)
    options = TrainingOptions(train_file=str(text_file), output_dir=str(output), **{**quick, **settings})
    return finetune(options, str(start)).output_dir


def noted(directory: Path) -> Path:
    """Change a model so that its weights, its embedding rows and its tokenizer each cause a note."""
    configure(directory, tie_word_embeddings=False, vocab_size=305)
    model = random_model(vocab_size=305)
    stored = {**model.state_dict(), WTE: model.state_dict()[WTE], "value_head.weight": torch.zeros(1)}
    stored[HEAD] = stored[WTE] + 1
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, directory / "model.safetensors")
    (directory / "added_tokens.json").write_text(json.dumps({f"<{n}>": 300 + n for n in range(3)} | {"<far>": 400}))
    (directory / "tokenizer_config.json").unlink(missing_ok=True)
    return directory


NOTES = ("value_head", "1 of the model's 305 embedding rows", "<far>")


@pytest.mark.parametrize("command", ["generate", "train", "evaluate"])
def test_each_note_on_the_files_is_printed_once(
    command: str, checkpoint: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = str(noted(checkpoint))
    if command == "generate":
        load_generator(read_checkpoint(Path(name)), "auto", "auto")
    elif command == "train":
        fine_tuned(checkpoint, text_file, tmp_path / "out")
    else:
        evaluate(ModelChoice(name, "model_name"), EvaluationOptions(eval_file=str(text_file)))
    err = capsys.readouterr().err
    assert [sum(note in line for line in err.splitlines()) for note in NOTES] == [1, 1, 1]


def test_training_reads_tied_weights_stored_under_lm_head(
    checkpoint: Path, model_dir: Path, weights: dict[str, Tensor]
) -> None:
    weights[HEAD] = weights.pop(WTE)
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    torch.testing.assert_close(starts_with(checkpoint), theirs(model_dir), atol=1e-4, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"lora": True}], ids=str)
def test_untied_head_is_trained_and_kept(
    checkpoint: Path,
    weights: dict[str, Tensor],
    text_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    settings: dict,
) -> None:
    save_file({**weights, HEAD: weights[WTE].roll(1, 0)}, checkpoint / "model.safetensors", {"format": "pt"})
    expected = theirs(checkpoint)
    torch.testing.assert_close(starts_with(checkpoint), expected, atol=1e-4, rtol=0)
    output = fine_tuned(checkpoint, text_file, tmp_path / "out", **settings)
    assert "lm_head.weight differs from wte.weight" in capsys.readouterr().err
    torch.testing.assert_close(theirs(output), expected, atol=1e-4, rtol=0)
    found = new_context(load(str(output)).model, 64).start(IDS.tolist())[0]
    torch.testing.assert_close(found, expected[-1], atol=1e-4, rtol=0)


def test_rows_without_a_token_are_kept_and_counted(
    checkpoint: Path, weights: dict[str, Tensor], text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights[WTE] = torch.cat([weights[WTE], torch.ones(20, 32)])
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    configure(checkpoint, vocab_size=320)
    output = fine_tuned(checkpoint, text_file, tmp_path / "out")
    assert "20 of the model's 320 embedding rows" in capsys.readouterr().err
    torch.testing.assert_close(theirs(output), theirs(checkpoint), atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_training_starts_from_adapter_with_resized_embedding(model_dir: Path, tmp_path: Path) -> None:
    base = GPT2LMHeadModel.from_pretrained(model_dir, local_files_only=True)
    base.resize_token_embeddings(310, mean_resizing=False)
    model = get_peft_model(base, LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)).eval()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    with torch.no_grad():
        expected = model(IDS).logits[0]
    torch.testing.assert_close(starts_with(tmp_path), expected, atol=1e-4, rtol=0)


def test_training_leaves_out_cross_attention(tmp_path: Path, model_dir: Path) -> None:
    random_model(add_cross_attention=True).save_pretrained(tmp_path)
    shutil.copy(model_dir / "tokenizer.json", tmp_path)
    torch.testing.assert_close(starts_with(tmp_path), theirs(tmp_path), atol=1e-4, rtol=0)


def test_training_reads_config_fields_under_other_names(checkpoint: Path, model_dir: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    del config["n_positions"], config["n_embd"]
    (checkpoint / "config.json").write_text(json.dumps({**config, "n_ctx": 64, "hidden_size": 32}))
    torch.testing.assert_close(starts_with(checkpoint), theirs(model_dir), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("resid_pdrop", "much"), ("attn_pdrop", 1.5), ("bos_token_id", "<s>"), ("initializer_range", None)],
)
def test_error_names_the_field_that_transformers_refuses(checkpoint: Path, field: str, value: object) -> None:
    configure(checkpoint, **{field: value})
    with pytest.raises(UserError, match=rf"config\.json.*{field}") as caught:
        existing_model(read_checkpoint(checkpoint))
    assert caught.value.message.isprintable()
