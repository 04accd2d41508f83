"""Map our options to transformers' TrainingArguments."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset
from transformers import TrainingArguments
from transformers.integrations import integration_utils as integrations

from gpt2tg.errors import UserError, masked, one_line
from gpt2tg.options import TrainingOptions
from gpt2tg.training.compiling import check_compiling
from gpt2tg.training.console import log
from gpt2tg.training.fields import trainer_fields
from gpt2tg.training.model.four_bits import check_4bit


def training_arguments(options: TrainingOptions, device: torch.device) -> TrainingArguments:
    """Return the arguments of transformers' Trainer, --trainer included.

    `FlowControl` decides when to evaluate, and `RunDirectory` which checkpoints to remove.

    Raises:
        UserError: an option is not available here, or transformers refuses a --trainer field.
    """
    _check_services(options.report_to)
    _check_precision(options, device)
    _check_optimizer(options.optim)
    check_4bit(options, device)
    check_compiling(options, device)
    others = trainer_fields(options.trainer)
    try:
        arguments = TrainingArguments(**_settings(options, device), **others)
        _check_data_loader(arguments)
    except (ValueError, TypeError, ImportError) as error:
        if not others:
            raise
        raise UserError(f"{' '.join(map(masked, options.trainer))}: {one_line(error)}", "trainer") from None
    # With several GPUs the Trainer would use DataParallel in one process, which is slow and changes the batch.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def available_precision(options: TrainingOptions, device: torch.device) -> TrainingOptions:
    """Return the options without --fp16 if the device cannot train in fp16; a warning is logged then."""
    if not options.fp16 or device.type == "cuda":
        return options
    log.warning(f"--fp16 needs a CUDA GPU, and this run is on {device.type}: training in fp32")
    return replace(options, fp16=False)


def _settings(options: TrainingOptions, device: torch.device) -> dict[str, Any]:
    on_gpu = device.type == "cuda"
    return dict(
        output_dir=options.output_dir,
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        learning_rate=options.learning_rate,
        lr_scheduler_type=options.lr_scheduler_type,
        warmup_steps=options.warmup_steps,
        weight_decay=options.weight_decay,
        adam_beta2=options.adam_beta2,
        max_grad_norm=options.max_grad_norm,
        optim="adamw_torch_fused" if options.optim == "muon" else options.optim,  # the trainer makes Muon itself
        fp16=options.fp16,
        bf16=options.bf16,
        use_cpu=device.type == "cpu",  # bf16 on a CPU requires it
        **_checkpointing(options),
        ddp_find_unused_parameters=False,  # every trained weight takes part in each step
        eval_strategy="no",
        save_strategy="steps",
        save_steps=options.save_steps,
        logging_steps=options.logging_steps,
        logging_nan_inf_filter=False,  # it would hide a loss that is not finite, and sync with the GPU at each step
        seed=options.seed,
        dataloader_pin_memory=on_gpu,
        accelerator_config={"non_blocking": on_gpu},  # from pinned memory, so that no copy waits for the GPU
        prediction_loss_only=True,
        disable_tqdm=True,
        report_to=list(options.report_to) or "none",
        push_to_hub=options.push_to_hub,
    )


def _checkpointing(options: TrainingOptions) -> dict[str, Any]:
    """Return the settings of gradient checkpointing, which newer versions of transformers name differently."""
    if not options.gradient_checkpointing:
        return {}
    known = {field.name for field in fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}


def _check_services(names: tuple[str, ...]) -> None:
    available = integrations.get_available_reporting_integrations()  # type: ignore[no-untyped-call]
    for name in names:
        if name not in (*available, "all", "none"):
            known = ", ".join(integrations.INTEGRATION_TO_CALLBACK)
            raise UserError(f"{name} is not installed here, or not one of {known}", "report_to")


def _check_precision(options: TrainingOptions, device: torch.device) -> None:
    if not options.bf16:
        return
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"is not supported by {torch.cuda.get_device_name()}: use --fp16", "bf16")
    if device.type == "mps" and not torch.backends.mps.is_macos_or_newer(14, 0):
        raise UserError("needs macOS 14 or newer on an Apple GPU: leave the flag out", "bf16")


def _check_optimizer(name: str) -> None:
    if name == "muon" and not hasattr(torch.optim, "Muon"):
        raise UserError(f"muon needs torch 2.9 or newer, this is {torch.__version__}: upgrade torch", "optim")


def _check_data_loader(arguments: TrainingArguments) -> None:
    """Raise the ValueError with which torch refuses these settings: the Trainer makes its data loader much later."""
    DataLoader(
        TensorDataset(torch.zeros(1)),
        num_workers=arguments.dataloader_num_workers,
        persistent_workers=arguments.dataloader_persistent_workers,
        prefetch_factor=arguments.dataloader_prefetch_factor,
        multiprocessing_context=arguments.dataloader_multiprocessing_context,
    )
