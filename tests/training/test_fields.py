"""--trainer name=value, and --push_to_hub without a network."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import LocalTokenNotFoundError
from transformers import Trainer, TrainingArguments

import finetune_gpt2
from gpt2tg.cli import _resuming
from gpt2tg.errors import RunError, UserError
from gpt2tg.options import DeviceOptions, TrainingOptions
from gpt2tg.training import hub_trainer as module
from gpt2tg.training.fields import FIXED, FLAGS, trainer_fields
from gpt2tg.training.finetune import finetune, training_arguments

pytestmark = pytest.mark.usefixtures("without_pictures")


def test_fields_arrive_with_their_types() -> None:
    entries = ("adam_beta1=0.8", "dataloader_num_workers=2", "hub_private_repo=true", 'lr_scheduler_kwargs={"a": 1}')
    given = TrainingOptions(train_file="a.txt", push_to_hub=True, trainer=(*entries, "hub_model_id=me/owl"))
    arguments = training_arguments(given, torch.device("cpu"))
    assert (arguments.adam_beta1, arguments.dataloader_num_workers) == (0.8, 2)
    assert arguments.hub_private_repo is True
    assert arguments.lr_scheduler_kwargs == {"a": 1}
    assert (arguments.push_to_hub, arguments.hub_model_id) == (True, "me/owl")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("adam_beta1=x", "invalid float value: 'x'"),
        ("adam_beta=1", "has no field adam_beta; did you mean adam_beta1"),
        ("adam_beta1", "is not of the form name=value"),
        ("num_train_epochs=2", "use --epochs instead"),
        ("learning_rate=1", "use --learning_rate instead"),
        ("hub_strategy=never", "invalid choice: 'never'"),
        ("hub_private_repo=perhaps", "perhaps"),
        ("ignore_data_skip=true", "cannot be set, because other flags decide it"),
        ("average_tokens_across_devices=false", "cannot be set, because other flags decide it"),
        ('accelerator_config={"even_batches": false}', "cannot be set, because other flags decide it"),
        ("dataloader_in_order=false", "cannot be set, because other flags decide it"),
        ("bf16_full_eval=true", "cannot be set, because other flags decide it"),
        ("use_liger_kernel=true", "cannot be set, because other flags decide it"),
        ("hub_always_push=true", "cannot be set, because other flags decide it"),
        ("restore_callback_states_from_checkpoint=true", "cannot be set, because other flags decide it"),
        ("torch_compile_backend=inductor", "use --compile instead"),
        ("torch_compile_mode=max-autotune", "use --compile instead"),
        ("fsdp=full_shard", "the launcher sets this"),
        ('fsdp_config={"version": 2}', "the launcher sets this"),
        ("deepspeed=zero3.json", "the launcher sets this"),
        ("parallelism_config={}", "the launcher sets this"),
        ("hub_strategy=checkpoint", "checkpoints are not uploaded: use every_save or end"),
        ("hub_strategy=all_checkpoints", "checkpoints are not uploaded: use every_save or end"),
    ],
)
def test_wrong_fields_are_refused_in_one_line(entry: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        trainer_fields([entry])
    assert refusal.value.as_flag().startswith(f"--trainer {entry}")
    assert "\n" not in str(refusal.value)


def test_label_smoothing_changes_the_training_and_not_what_is_measured(
    text_file: Path, model_dir: Path, tmp_path: Path
) -> None:
    """Validation loss, perplexity, early stopping and the best checkpoint rest on the plain cross entropy."""
    measured, learned = {}, {}
    for name, trainer in {"plain": (), "smoothed": ("label_smoothing_factor=0.2",)}.items():
        out = tmp_path / name
        options = TrainingOptions(
            train_file=str(text_file), output_dir=str(out), block_size=16, batch_size=2, max_steps=1, logging_steps=1,
            eval_steps=1, learning_rate=1e-12, validation_split=0.4, dropout=0, trainer=trainer,
        )  # fmt: skip
        finetune(options, str(model_dir))
        log = json.loads((out / "checkpoint-1" / "trainer_state.json").read_text())["log_history"]
        measured[name] = [entry[kind] for entry in log for kind in ("eval_loss", "eval_perplexity") if kind in entry]
        learned[name] = [entry["loss"] for entry in log if "loss" in entry]
    assert len(measured["plain"]) == 4
    assert measured["smoothed"] == pytest.approx(measured["plain"], rel=1e-5)
    assert learned["smoothed"] != pytest.approx(learned["plain"], rel=1e-3)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (("dataloader_prefetch_factor=2",), "dataloader_num_workers"),
        (("dataloader_persistent_workers=true",), "needs num_workers > 0"),
        (("dataloader_multiprocessing_context=spawn",), "multi-process loading"),
        (("dataloader_num_workers=-1",), "should be non-negative"),
    ],
)
def test_values_that_do_not_go_together_are_one_line_too(entries: tuple[str, ...], message: str) -> None:
    """Before anything is written, although torch makes its data loader much later."""
    given = TrainingOptions(train_file="a.txt", trainer=entries)
    with pytest.raises(UserError, match=message):
        training_arguments(given, torch.device("cpu"))


def test_each_field_of_ours_names_a_flag_that_is_there() -> None:
    flags = {f.name for options in (TrainingOptions, DeviceOptions) for f in fields(options)}
    assert set(FLAGS.values()) <= flags


def test_what_we_set_ourselves_cannot_be_set_again() -> None:
    given = TrainingOptions(train_file="a.txt", gradient_checkpointing=True)
    default = TrainingArguments(output_dir="x", use_cpu=True)
    arguments = training_arguments(given, torch.device("cpu"))
    differing = {
        f.name for f in fields(TrainingArguments) if getattr(arguments, f.name) != getattr(default, f.name)
    } - {"logging_dir", "run_name"}
    assert differing <= set(FLAGS) | FIXED


class Hub:
    """Stands for the hub; keeps what it is asked."""

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


def test_what_the_directory_holds_is_uploaded(
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


def test_a_token_is_written_nowhere(
    text_file: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = TrainingOptions(
        train_file=str(text_file), output_dir=str(tmp_path), block_size=16, max_steps=1, validation_split=0,
        trainer=("hub_token=hf_secret", "adam_beta1=0.8"),
    )  # fmt: skip
    finetune(given, str(model_dir))
    assert all(b"hf_secret" not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert json.loads((tmp_path / "run.json").read_text())["options"]["trainer"] == ["adam_beta1=0.8"]
    finetune(replace(given, resume="newest", trainer=("adam_beta1=0.8",)), str(model_dir))
    words = ["--trainer", "hub_token=hf_secret", "adam_beta1=0.8", "--trainer=hub_token=hf_secret"]
    assert "hf_secret" not in _resuming(finetune_gpt2.parser(), words)
    assert "adam_beta1=0.8" in _resuming(finetune_gpt2.parser(), words)
    with pytest.raises(UserError) as refused:
        training_arguments(replace(given, trainer=("push_token=hf_secret",)), torch.device("cpu"))
    assert "hf_secret" not in str(refused.value)
    assert "hf_secret" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("no_merge", [False, True])
def test_the_hub_never_holds_an_adapter_beside_a_merged_model(
    text_file: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_merge: bool
) -> None:
    """transformers would load the adapter of the last upload on the way instead of the model."""
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
def test_what_stands_before_the_hub_is_one_line_before_training(
    text_file: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The errors of a network have no common class."""

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
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(RunError, match="leave the flag out"):
        finetune(replace(refused, overwrite=True), str(model_dir))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
