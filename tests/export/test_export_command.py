"""--export and --merge of finetune_gpt2.py, loaded by transformers and, where it is installed, by CTranslate2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import random_model
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GPT2LMHeadModel

import finetune_gpt2
from gpt2tg.export import output

IDS = torch.tensor([[5, 80, 7, 33, 12, 250, 3]])

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def load(directory: Path) -> GPT2LMHeadModel:
    return GPT2LMHeadModel.from_pretrained(directory, local_files_only=True).eval()


def continuation(model: GPT2LMHeadModel) -> list[int]:
    generated = model.generate(IDS, max_new_tokens=20, do_sample=False, pad_token_id=0)
    return generated[0, IDS.shape[1] :].tolist()


def run(*words: object) -> int:
    return finetune_gpt2.main(list(map(str, words)))


def padded(directory: Path, model_dir: Path) -> Path:
    """A model with 20 rows without a token, which it would generate."""
    model = random_model(vocab_size=320)
    model.transformer.wte.weight.data[300:] *= 3
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model_dir / name, directory)
    return directory


def test_padding_never_shows_in_an_export(model_dir: Path, tmp_path: Path) -> None:
    source, out = padded(tmp_path / "model", model_dir), tmp_path / "out"
    assert max(continuation(load(source))) >= 300
    assert run("--export", "safetensors", "--model_name", source, "--output_dir", out) == 0
    exported = load(out)
    assert exported.dtype == torch.float16
    assert exported.config.vocab_size == 300
    before = load(source)
    before.config.eos_token_id = None
    expected = before.generate(
        IDS, max_new_tokens=20, do_sample=False, pad_token_id=0, suppress_tokens=list(range(300, 320)), eos_token_id=0
    )
    assert continuation(exported.float()) == expected[0, IDS.shape[1] :].tolist()
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


@pytest.mark.parametrize("base", ["named", "given"])
def test_merged_adapter_equals_that_of_peft(model_dir: Path, tmp_path: Path, base: str) -> None:
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    settings = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, use_dora=True, init_lora_weights=False)
    get_peft_model(load(model_dir), settings).save_pretrained(adapter)
    with torch.no_grad():
        expected = PeftModel.from_pretrained(load(model_dir), adapter).merge_and_unload()(IDS).logits
    given = []
    if base == "given":
        config = json.loads((adapter / "adapter_config.json").read_text())
        (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/nowhere"}))
        given = ["--model_name", model_dir]
    assert run("--merge", adapter, "--output_dir", out, *given) == 0
    merged = load(out)
    assert merged.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).logits, expected, atol=1e-4, rtol=0)


def test_other_files_stay_unless_they_contradict(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "config.json").write_text("{}")
    words = ("--export", "safetensors", "--model_name", model_dir, "--output_dir", tmp_path, "--precision", "fp32")
    assert run(*words) == 2
    assert (tmp_path / "config.json").read_text() == "{}"
    assert run(*words, "--overwrite") == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "vocab.json").exists()
    assert continuation(load(tmp_path)) == continuation(load(model_dir))


def test_failed_export_leaves_nothing(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output, "sync", fail)
    assert run("--export", "gguf", "--model_name", model_dir, "--output_dir", tmp_path / "new" / "out") == 1
    assert not (tmp_path / "new" / "out").exists()


def test_draft_of_a_killed_export_is_removed(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / output.DRAFT).mkdir()
    (tmp_path / output.DRAFT / "model-F32.gguf").write_text("half")
    assert run("--export", "gguf", "--model_name", model_dir, "--output_dir", tmp_path) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model-F16.gguf"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--export", "gguf"], "--model_name is required"),
        (["--export", "onnx", "--model_name", "gpt2-tiny"], "onnx is unknown"),
        (["--export", "safetensors", "--model_name", "gpt2-tiny", "--precision", "int8"], "int8 is for --export gguf"),
        (["--merge", "gpt2-tiny"], "--merge gpt2-tiny holds a whole model and no adapter"),
        (["--merge", "/nowhere"], "--merge /nowhere cannot be found"),
        (["--merge", "a", "--export", "gguf"], "--export takes an adapter as --model_name"),
        (["--export", "ctranslate2", "--model_name", "gpt2-tiny"], "pip install ctranslate2"),
    ],
    ids=str,
)
def test_wrong_command_is_refused(
    words: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ctranslate2" else name)
    assert run(*words, "--output_dir", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_model_itself_and_runs_are_not_replaced(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--export", "gguf", "--model_name", checkpoint, "--output_dir", checkpoint, "--overwrite")
    assert run(*words) == 2
    assert "holds the model to read" in capsys.readouterr().err
    (checkpoint / "run.json").write_text('{"versions": {"gpt2tg": "0.2.0"}}')
    assert run(*words[:3], "gpt2-tiny", *words[4:]) == 2
    assert "holds a training run" in capsys.readouterr().err


def test_ctranslate2_generates_the_same(model_dir: Path, tmp_path: Path) -> None:
    ctranslate2 = pytest.importorskip("ctranslate2")
    out = tmp_path / "out"
    assert run("--export", "ctranslate2", "--model_name", model_dir, "--output_dir", out, "--precision", "fp32") == 0
    tokens = json.loads((out / "vocabulary.json").read_text())
    found = ctranslate2.Generator(str(out)).generate_batch(
        [[tokens[number] for number in IDS[0]]], max_length=20, sampling_topk=1, include_prompt_in_result=False
    )
    assert found[0].sequences_ids[0] == continuation(load(model_dir))
