"""Fields of transformers' TrainingArguments that no flag of ours stands for: `--trainer name=value`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from transformers import HfArgumentParser, TrainingArguments
from transformers.trainer_utils import HubStrategy

from gpt2tg.errors import UserError, masked, nearest, one_line

# Fields that flags of ours stand for. Where a flag has the name of the field, the field alone is listed.
FLAGS = {
    "activation_checkpointing": "gradient_checkpointing",
    "auto_find_batch_size": "auto_batch_size",
    "eval_strategy": "eval_steps",
    "greater_is_better": "keep",
    "load_best_model_at_end": "keep",
    "logging_strategy": "logging_steps",
    "metric_for_best_model": "keep",
    "num_train_epochs": "epochs",
    "per_device_eval_batch_size": "batch_size",
    "per_device_train_batch_size": "batch_size",
    "resume_from_checkpoint": "resume",
    "save_strategy": "save_steps",
    "torch_compile": "compile",
    "torch_compile_backend": "compile",
    "torch_compile_mode": "compile",
    "use_cpu": "device",
} | {
    name: name
    for name in (
        "adam_beta2", "bf16", "eval_steps", "fp16", "gradient_accumulation_steps", "gradient_checkpointing",
        "learning_rate", "logging_steps", "lr_scheduler_type", "max_grad_norm", "max_steps", "optim", "output_dir",
        "push_to_hub", "report_to", "save_steps", "save_total_limit", "seed", "warmup_steps", "weight_decay",
    )
}  # fmt: skip

# Fields on which our promises rest: exact losses, whole checkpoints, runs that can be resumed, what is said. And those
# that would change nothing here: how transformers itself measures, and uploads checkpoints.
SETTLED = {
    "accelerator_config", "activation_checkpointing_kwargs", "average_tokens_across_devices", "batch_eval_metrics",
    "bf16_full_eval", "dataloader_drop_last", "dataloader_in_order", "dataloader_pin_memory",
    "ddp_find_unused_parameters", "disable_tqdm", "do_eval", "do_predict", "do_train", "enable_jit_checkpoint",
    "eval_accumulation_steps", "eval_delay", "eval_do_concat_batches", "eval_on_start", "eval_use_gather_object",
    "fp16_full_eval", "gradient_checkpointing_kwargs", "hub_always_push", "ignore_data_skip", "include_for_metrics",
    "label_names", "liger_kernel_config", "local_rank", "log_level", "log_level_replica", "logging_nan_inf_filter",
    "prediction_loss_only", "remove_unused_columns", "restore_callback_states_from_checkpoint", "save_on_each_node",
    "save_only_model", "use_cache", "use_liger_kernel",
}  # fmt: skip

# Fields that change neither the data nor a step: they may differ when a run is resumed.
SHAPES_NO_STEP = {
    "dataloader_multiprocessing_context", "dataloader_num_workers", "dataloader_persistent_workers",
    "dataloader_prefetch_factor", "ddp_timeout", "debug", "include_num_input_tokens_seen", "log_on_each_node",
    "logging_dir", "logging_first_step", "project", "run_name", "skip_memory_metrics", "torch_empty_cache_steps",
    "trackio_bucket_id", "trackio_space_id", "trackio_static_space_id",
}  # fmt: skip
HUB_FIELDS = "hub_"

# The end of the names of fields that hold a secret, as transformers knows them too.
SECRET = "_token"

# Fields that cut a model, or its work, among several GPUs, which the launcher is told.
LAUNCHER = {"deepspeed", "fsdp", "fsdp_config", "parallelism_config"}

# What hub_strategy may be: at each save, or at the end alone. What is uploaded is the model, and no checkpoint.
HUB_STRATEGIES = (HubStrategy.EVERY_SAVE, HubStrategy.END)


def trainer_fields(entries: Sequence[str]) -> dict[str, Any]:
    """The fields in `name=value` entries, each as the type that TrainingArguments gives it.

    Lists are written with commas, what holds names and values as JSON.

    Raises:
        UserError: no such field, a value of another type, or a field that is not free to be set.
    """
    parser = HfArgumentParser(TrainingArguments, exit_on_error=False, allow_abbrev=False)
    return dict(_field(entry, parser) for entry in entries)


def _field(entry: str, parser: HfArgumentParser) -> tuple[str, Any]:
    name, equals, text = entry.partition("=")
    entry = masked(entry)
    if not name or not equals:
        raise UserError(f"{entry} is no field and value: write it like adam_beta1=0.8", "trainer")
    known = {action.dest: action for action in parser._actions if action.dest != "help"}
    if name in FLAGS:
        raise UserError(f"{entry}: that is what --{FLAGS[name]} is for", "trainer")
    if name in SETTLED:
        raise UserError(f"{entry}: what {name} is follows from the other flags and cannot be chosen", "trainer")
    if name in LAUNCHER:
        raise UserError(
            f"{entry}: that is for the launcher, as in: accelerate launch --config_file configs/fsdp.yaml "
            "--num_processes 2 finetune_gpt2.py ...",
            "trainer",
        )
    if name not in known:
        near = nearest(name, set(known) - set(FLAGS) - SETTLED - LAUNCHER)
        hint = f"; did you mean {near}?" if near else ""
        raise UserError(f"{entry}: TrainingArguments of transformers has no field {name}{hint}", "trainer")
    values = text.split(",") if known[name].nargs in ("+", "*") else [text]
    try:
        found = parser.parse_known_args([f"--{name}", *values] if len(values) > 1 else [f"--{name}={text}"])[0]
    except argparse.ArgumentError as error:
        raise UserError(f"{entry}: {one_line(error.message)}", "trainer") from None
    value = getattr(found, name)
    if name == "hub_strategy" and value not in HUB_STRATEGIES:
        names = " or ".join(strategy.value for strategy in HUB_STRATEGIES)
        raise UserError(f"{entry}: checkpoints are not uploaded: use {names}", "trainer")
    return name, value


def shaping_fields(entries: Sequence[str]) -> dict[str, Any]:
    """Return those fields in `name=value` entries that shape a step, where they differ from what is the default anyway.

    An entry that this version of transformers refuses stands as it was written.
    """
    found: dict[str, Any] = {}
    for entry in entries:
        name = entry.partition("=")[0]
        if name in SHAPES_NO_STEP or name.startswith(HUB_FIELDS):
            continue
        try:
            found |= trainer_fields([entry])
        except UserError:
            found[name] = entry.partition("=")[2]
    defaults = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    return {name: value for name, value in found.items() if name not in defaults or defaults[name] != value}


def without_secrets(entries: Sequence[str]) -> tuple[str, ...]:
    """Return the entries that may be written to a file: those that hold no secret."""
    return tuple(entry for entry in entries if not entry.partition("=")[0].endswith(SECRET))
