"""The model card: its metadata, and edits that runs must keep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import TrainerState

from gpt2tg.training.output.card import model_card
from gpt2tg.training.output.layout import CARD_FILE, RUN_FILE
from gpt2tg.training.output.records import Records
from gpt2tg.training.output.run_directory import RunDirectory, publish_from

FIGURES = {
    "step": 4, "of_steps": 8, "training_loss": 2.0, "validation_loss_before": None, "validation_loss": 3.0,
    "best_validation_loss": 3.0, "best_step": 4,
}  # fmt: skip

RUN = {
    "model_name": None,
    "options": {"block_size": 16, "learning_rate": 1e-3},
    "data": {"train_examples": 6, "train_blocks": 3, "validation_blocks": 1},
    "device": "cpu",
    "versions": {"gpt2tg": "0.1.0"},
}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("gpt2", "openai-community/gpt2"),
        ("somebody/owl-gpt2", "somebody/owl-gpt2"),
        ("here/model", None),
        ("gpt2-tiny", None),
        ("/home/me/model", None),
        (None, None),
    ],
)
def test_card_names_the_base_model_of_the_hub(
    name: str | None, shown: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    metadata = yaml.safe_load(model_card({**RUN, "model_name": name, "figures": FIGURES}, 1).split("---")[1])
    assert metadata.get("base_model") == shown
    assert metadata["library_name"] == "transformers"
    assert metadata["tags"] == ["gpt2", "gpt2tg"]


@pytest.mark.parametrize("is_adapter", [False, True])
def test_card_loads_an_adapter_by_peft(is_adapter: bool) -> None:
    """The pipeline of transformers takes no directory of an adapter that has a config.json too."""
    options = {**RUN["options"], "lora": True, "no_merge": is_adapter}
    card = model_card({**RUN, "options": options, "figures": FIGURES}, 1)
    assert ('AutoPeftModelForCausalLM.from_pretrained("DIRECTORY")' in card) == is_adapter
    assert ('pipeline("text-generation", model="DIRECTORY")' in card) != is_adapter
    assert "1 block held out" in card


def records(directory: Path, **run: Any) -> Records:
    """Return the records of a new process that works in a directory, as after a resume."""
    directory.mkdir(exist_ok=True)
    run_directory = RunDirectory(directory, None)
    run_directory.update(**{**RUN, **run})
    return Records(run_directory, "title")


def state(step: int) -> TrainerState:
    return TrainerState(global_step=step, max_steps=8, log_history=[])


def test_edited_card_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = tmp_path / CARD_FILE
    records(tmp_path).write(state(2))
    records(tmp_path).write(state(4))
    assert "stands at step 4 of 8" in card.read_text(encoding="utf-8")
    card.write_text("my own words", encoding="utf-8")
    resumed = records(tmp_path)
    resumed.write(state(6))
    resumed.write(state(8))
    assert card.read_text(encoding="utf-8") == "my own words"
    assert json.loads((tmp_path / RUN_FILE).read_text())["figures"]["step"] == 8
    assert capsys.readouterr().err.count("was edited and stays as it is") == 1
    card.unlink()
    records(tmp_path).write(state(8))
    assert "stands at step 8 of 8" in card.read_text(encoding="utf-8")


def test_card_of_a_run_killed_before_writing_it_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """run.json is written before the card, and a kill may come between."""
    records(tmp_path).write(state(2))
    with monkeypatch.context() as patch:
        patch.setattr("gpt2tg.training.output.records.write_text_file", lambda *_: None)
        records(tmp_path).write(state(4))
    records(tmp_path).write(state(6))
    assert "stands at step 6 of 8" in (tmp_path / CARD_FILE).read_text(encoding="utf-8")


def test_card_without_a_recorded_digest_is_replaced(tmp_path: Path) -> None:
    """Early versions recorded none."""
    (tmp_path / CARD_FILE).write_text("written by an early version", encoding="utf-8")
    records(tmp_path).write(state(2))
    assert "stands at step 2 of 8" in (tmp_path / CARD_FILE).read_text(encoding="utf-8")


def test_search_keeps_an_edited_card(tmp_path: Path) -> None:
    source, top = tmp_path / "source", tmp_path / "top"
    records(source).write(state(2))
    records(top).write(state(2))
    publish_from(source, top)
    assert (top / CARD_FILE).read_bytes() == (source / CARD_FILE).read_bytes()
    (top / CARD_FILE).write_text("my own words", encoding="utf-8")
    publish_from(source, top)
    assert (top / CARD_FILE).read_text(encoding="utf-8") == "my own words"
