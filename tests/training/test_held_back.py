"""--test_file: the final model on a text by which nothing was chosen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, GPT2LMHeadModel

from gpt2tg.errors import UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.training.data.held_back import scan_test
from gpt2tg.training.data.sources import plan_sources
from gpt2tg.training.finetune import finetune

LINES = ["The duke counted bells.", "A river told the owl a secret about the map.", "Silence was sold by the fox."]


def loss_by_hand(directory: Path, lines: list[str], block_size: int) -> float:
    """The loss of the model that a run left, on blocks cut from the lines."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = [token for line in lines for token in [*tokenizer(line)["input_ids"], tokenizer.eos_token_id]]
    blocks = [torch.tensor(ids[start : start + block_size]) for start in range(0, len(ids), block_size)]
    model = GPT2LMHeadModel.from_pretrained(directory).eval()
    with torch.no_grad():
        losses = [cross_entropy(model(block[None]).logits[0, :-1], block[1:], reduction="none") for block in blocks]
    return float(torch.cat(losses).mean())


@pytest.mark.parametrize("settings", [{"keep": "best", "learning_rate": 0.05}, {"lora": True}], ids=["best", "adapter"])
def test_final_model_is_measured_once(text_file: Path, model_dir: Path, tmp_path: Path, settings: dict) -> None:
    (tmp_path / "test.txt").write_text("\n".join(LINES) + "\n")
    options = TrainingOptions(
        train_file=str(text_file), output_dir=str(tmp_path / "out"), block_size=16, validation_split=0.3, max_steps=4,
        eval_steps=2, test_file=str(tmp_path / "test.txt"), **settings,
    )  # fmt: skip
    outcome = finetune(options, str(model_dir))
    out = tmp_path / "out"
    found = json.loads((out / "run.json").read_text())["test"]
    assert found["step"] == outcome.held_step
    assert found["loss"] == pytest.approx(loss_by_hand(out, LINES, 16), abs=1e-4)
    assert (
        f"| test, measured once (step {outcome.held_step}) | {found['loss']:.4f} |" in (out / "README.md").read_text()
    )
    if "lora" in settings:
        return
    (tmp_path / "other.txt").write_text(LINES[0] + "\n")
    finetune(replace(options, test_file=(str(tmp_path / "other.txt"),), resume="newest"), str(model_dir))
    again = json.loads((out / "run.json").read_text())["test"]
    assert again["loss"] == pytest.approx(loss_by_hand(out, LINES[:1], 16), abs=1e-4)


def test_test_examples_that_are_learned_from_are_counted(
    text_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"story": text_file.read_text().splitlines()[0]}, *({"story": line} for line in LINES)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = TrainingOptions(train_file=str(text_file), test_file=str(tmp_path / "test.jsonl"), validation_split=0)
    scan_test(options, None, plan_sources(options))
    assert [record.getMessage() for record in caplog.records] == [
        f'{tmp_path}/test.jsonl: reading the column "story"',
        "advice: 1 of 4 test examples are learned from too: the test loss looks better than it is",
    ]


def test_missing_test_text_is_refused_before_training(text_file: Path, model_dir: Path, tmp_path: Path) -> None:
    options = TrainingOptions(
        train_file=str(text_file), output_dir=str(tmp_path / "out"), test_file="none.txt", block_size=16
    )
    with pytest.raises(UserError, match=r"test_file none\.txt does not exist"):
        finetune(options, str(model_dir))
    assert not (tmp_path / "out").exists()
