"""Uploads to the Hugging Face hub."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import modification_times
from huggingface_hub.errors import LocalTokenNotFoundError
from transformers import Trainer

from gpt2tg.errors import RunError
from gpt2tg.options import TrainingOptions
from gpt2tg.training import hub_trainer as module
from gpt2tg.training.finetune import finetune


class Hub:
    """Stands in for HfApi, and records the uploads."""

    def __init__(self) -> None:
        self.uploads: list[tuple[str, set[str], list[str]]] = []
        self.files: set[str] = set()

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, ignore_patterns: list[str], delete_patterns: list[str], **_: object
    ) -> object:
        there = {path.name for path in folder_path.iterdir()}
        self.uploads.append((repo_id, there, ignore_patterns))
        self.files = {name for name in self.files if name not in delete_patterns} | there
        return SimpleNamespace(done=lambda: True, result=lambda: None)


def test_upload_contains_the_published_model(
    text_file: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub()
    monkeypatch.setattr(module, "HfApi", lambda: hub)

    def make_repository(self: Trainer, token: str | None = None, private: bool | None = None) -> None:
        self.hub_model_id, self.push_in_progress = self.args.hub_model_id, None

    monkeypatch.setattr(Trainer, "init_hf_repo", make_repository)
    given = TrainingOptions(
        train_file=str(text_file), output_dir=str(tmp_path), block_size=16, max_steps=2, save_steps=1,
        validation_split=0, push_to_hub=True, trainer=("hub_model_id=me/owl",),
    )  # fmt: skip
    finetune(given, str(model_dir))
    assert len(hub.uploads) == 3
    name, files, ignored = hub.uploads[-1]
    assert name == "me/owl"
    assert {"model.safetensors", "README.md", "tokenizer.json"} <= files
    assert "run.json" in ignored
    assert "checkpoint-*" in ignored
    finetune(replace(given, resume="newest"), str(model_dir))  # as after an upload that was interrupted
    assert hub.uploads[3:] == hub.uploads[-1:] == [hub.uploads[2]]


@pytest.mark.parametrize("no_merge", [False, True])
def test_upload_of_merged_model_deletes_the_adapter(
    text_file: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_merge: bool
) -> None:
    """transformers would load an adapter that an earlier upload left there instead of the model."""
    hub = Hub()
    hub.files = {"model.safetensors", "my-notes.txt"} if no_merge else {"my-notes.txt"}
    monkeypatch.setattr(module, "HfApi", lambda: hub)

    def make_repository(self: Trainer, token: str | None = None, private: bool | None = None) -> None:
        self.hub_model_id, self.push_in_progress = self.args.hub_model_id, None

    monkeypatch.setattr(Trainer, "init_hf_repo", make_repository)
    given = TrainingOptions(
        train_file=str(text_file), output_dir=str(tmp_path), block_size=16, max_steps=2, save_steps=1, lora=True,
        validation_split=0, push_to_hub=True, no_merge=no_merge, trainer=("hub_model_id=me/owl",),
    )  # fmt: skip
    finetune(given, str(model_dir))
    assert len(hub.uploads) == 3
    assert "adapter_model.safetensors" in hub.uploads[0][1]
    found = {name for name in hub.files if name.endswith(".safetensors") or name == "adapter_config.json"}
    assert found == ({"adapter_model.safetensors", "adapter_config.json"} if no_merge else {"model.safetensors"})
    assert "my-notes.txt" in hub.files


@pytest.mark.parametrize(
    "error",
    [LocalTokenNotFoundError("Token is required, but no token found."), Exception("[Errno 111] Connection refused")],
    ids=["no login", "no network"],
)
def test_unreachable_hub_is_reported_before_training(
    text_file: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Network errors have no common class."""

    def refuse(self: Trainer, token: str | None = None, private: bool | None = None) -> None:
        raise error

    monkeypatch.setattr(Trainer, "init_hf_repo", refuse)
    out = tmp_path / "out"
    given = TrainingOptions(train_file=str(text_file), output_dir=str(out), block_size=16, max_steps=1)
    refused = replace(given, push_to_hub=True)
    with pytest.raises(RunError, match=f"{re.escape(str(error))}; leave the flag out"):
        finetune(refused, str(model_dir))
    assert not out.exists()
    finetune(given, str(model_dir))
    before = modification_times(out)
    with pytest.raises(RunError, match="leave the flag out"):
        finetune(replace(refused, overwrite=True), str(model_dir))
    assert modification_times(out) == before
