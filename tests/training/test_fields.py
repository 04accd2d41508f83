"""--trainer name=value, and --push_to_hub without a network."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from gpt2tg.errors import UserError
from gpt2tg.options import DeviceOptions, TrainingOptions
from gpt2tg.training.fields import FIXED, FLAGS, trainer_fields
from gpt2tg.training.finetune import finetune, training_arguments


def test_fields_have_their_declared_types() -> None:
    entries = ("adam_beta1=0.8", "dataloader_num_workers=2", "hub_private_repo=true")
    given = TrainingOptions(train_file="a.txt", push_to_hub=True, trainer=(*entries, "hub_model_id=me/owl"))
    arguments = training_arguments(given, torch.device("cpu"))
    assert (arguments.adam_beta1, arguments.dataloader_num_workers) == (0.8, 2)
    assert arguments.hub_private_repo is True
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
def test_invalid_fields_are_refused_in_one_line(entry: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        trainer_fields([entry])
    assert refusal.value.as_flag().startswith(f"--trainer {entry}")
    assert "\n" not in str(refusal.value)


def test_label_smoothing_does_not_affect_evaluation(text_file: Path, model_dir: Path, tmp_path: Path) -> None:
    """Validation loss, perplexity, early stopping and the best checkpoint use the plain cross entropy."""
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
def test_contradictory_fields_are_refused_in_one_line(entries: tuple[str, ...], message: str) -> None:
    """Before anything is written, although the Trainer makes its data loader much later."""
    given = TrainingOptions(train_file="a.txt", trainer=entries)
    with pytest.raises(UserError, match=message):
        training_arguments(given, torch.device("cpu"))


def test_flags_named_for_fields_exist() -> None:
    flags = {f.name for options in (TrainingOptions, DeviceOptions) for f in fields(options)}
    assert set(FLAGS.values()) <= flags


def test_fields_that_we_set_cannot_be_set_again() -> None:
    given = TrainingOptions(train_file="a.txt", gradient_checkpointing=True)
    default = TrainingArguments(output_dir="x", use_cpu=True)
    arguments = training_arguments(given, torch.device("cpu"))
    differing = {
        f.name for f in fields(TrainingArguments) if getattr(arguments, f.name) != getattr(default, f.name)
    } - {"logging_dir", "run_name"}
    assert differing <= set(FLAGS) | FIXED


def test_hub_token_is_never_written_or_shown(
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
    with pytest.raises(UserError) as refused:
        training_arguments(replace(given, trainer=("push_token=hf_secret",)), torch.device("cpu"))
    assert "hf_secret" not in str(refused.value)
    assert "hf_secret" not in "".join(capsys.readouterr())
