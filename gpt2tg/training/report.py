"""Report a run: the log lines at its start and its end, and its entry in run.json."""

from __future__ import annotations

import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from transformers import GPT2LMHeadModel, TrainingArguments

from gpt2tg import __version__
from gpt2tg.inspection.perplexity import perplexity
from gpt2tg.options import SCHEDULE_FREE_PREFIX, TrainingOptions
from gpt2tg.training.console import log
from gpt2tg.training.data.advice import counted
from gpt2tg.training.data.corpus import Corpus
from gpt2tg.training.data.selection import plain_names
from gpt2tg.training.data.training_data import TrainingData
from gpt2tg.training.fields import without_secrets
from gpt2tg.training.outcome import Outcome
from gpt2tg.training.stopwatch import format_duration

# The lowest capability of CUDA GPUs (A100, RTX 30) that multiply bfloat16 matrices several times as fast as fp32 ones.
FAST_BF16 = (8, 0)


def log_setup(options: TrainingOptions, model: GPT2LMHeadModel, name: str, data: TrainingData, processes: int) -> None:
    """Log what is trained on what."""
    log.info(f"model: {name}, {model.num_parameters() / 1e6:.1f}M parameters")
    held_out = f"{counted(len(data.validation), 'block')} held out" if data.validation else "nothing held out"
    log.info(
        f"data: {counted(data.train_examples, 'example')} in {counted(len(data.train), 'block')} of "
        f"{options.block_size} tokens, {held_out}"
    )
    if data.is_apart and not options.no_cross_examples:
        log.info(
            "examples with prompts are packed whole, their attention and positions apart; --cross_examples joins them"
        )
    if processes > 1:
        blocks = processes * options.batch_size * options.gradient_accumulation_steps
        log.info(
            f"each step: {processes} processes x batch {options.batch_size} x accumulation "
            f"{options.gradient_accumulation_steps} = {blocks} blocks, {blocks * options.block_size:,} tokens"
        )


def log_idle_gpus(device: torch.device) -> None:
    """Log how to use all GPUs, if the run uses one of several."""
    if device.type == "cuda" and (count := torch.cuda.device_count()) > 1:
        log.info(f"{count} GPUs are available, one is used: torchrun --nproc_per_node {count} uses all")


def log_precision(options: TrainingOptions, arguments: TrainingArguments, device: torch.device) -> None:
    """Log that the other precision is faster: 16 bits on a GPU with fast bfloat16, 32 bits on a CPU without any."""
    is_slow = device.type == "cuda" and not (options.bf16 or options.fp16 or arguments.tf32)
    if is_slow and torch.cuda.get_device_capability(device) >= FAST_BF16:
        log.info(f"advice: {torch.cuda.get_device_name(device)} computes several times as fast with --bf16")
    if device.type == "cpu" and options.bf16 and emulates_bf16():
        log.info(
            "advice: this processor has no instructions for bfloat16: training is several times faster without --bf16"
        )


def emulates_bf16() -> bool:
    """Whether torch computes bfloat16 on this processor without a library, number by number."""
    return torch.backends.mkldnn.is_available() and not torch.ops.mkldnn._is_mkldnn_bf16_supported()  # type: ignore[no-untyped-call]


def log_schedule(options: TrainingOptions) -> None:
    """Log that a schedule-free optimizer wants a constant learning rate, if the run has another."""
    if options.optim.startswith(SCHEDULE_FREE_PREFIX) and options.lr_scheduler_type != "constant":
        log.info(f"advice: --optim {options.optim} needs no schedule: add --lr_scheduler_type constant")


def log_outcome(outcome: Outcome) -> None:
    """Log where the model is and what the training changed."""
    held = "" if outcome.held_step == outcome.steps else f", that of step {outcome.held_step:,}, the best"
    seconds = format_duration(outcome.seconds)
    log.info(f"reached step {outcome.steps} in {seconds}; the model is in {outcome.output_dir}{held}")
    before, after = outcome.loss_before, outcome.loss_after
    if before is not None and after is not None:
        log.info(
            f"held-out loss {before:.4f} before, {after:.4f} after; "
            f"perplexity {perplexity(before):.2f} before, {perplexity(after):.2f} after"
        )
        if after > before:
            log.warning(
                "the model before training knew the held-out text better: lower --learning_rate, or train on more text"
            )


def run_record(
    options: TrainingOptions,
    model_name: str | None,
    commit: str | None,
    corpus: Corpus,
    data: TrainingData,
    arguments: TrainingArguments,
) -> dict[str, Any]:
    """Return what run.json holds from the start of a run. Secrets are left out.

    Args:
        commit: of the hub model that is fine-tuned.
        corpus: the training text.
    """
    dataset = corpus.origin
    return {
        "model_name": model_name,
        "model_commit": commit,
        "options": {**asdict(options), "trainer": without_secrets(options.trainer)},
        "data": {
            "train_examples": data.train_examples,
            "validation_examples": data.validation_examples,
            "conversations": corpus.chat_template is not None,
            "train_blocks": len(data.train),
            "validation_blocks": len(data.validation) if data.validation else 0,
            "fingerprints": data.fingerprints,
            "dataset": None if dataset is None else dataset.as_record(),
        },
        "device": _device_name(arguments.device),
        "processes": arguments.world_size,
        "versions": {
            "gpt2tg": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "accelerate": accelerate.__version__,
        },
    }


def plot_title(name: str, options: TrainingOptions) -> str:
    """Return the title of loss.png."""
    if options.dataset_name is not None:
        return f"{name} on {Path(options.dataset_name).name}"
    first, *others = plain_names(options.train_file)
    return f"{name} on {Path(first).name}" + (f" and {len(others)} more" if others else "")


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    return str(device)
