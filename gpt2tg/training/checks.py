"""Check flags, files and config.json before torch and transformers are imported, which takes seconds.

Neither this module nor what it imports loads slowly.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from gpt2tg.checkpoint.checkpoint import Checkpoint, resolve_checkpoint
from gpt2tg.checkpoint.find import is_directory
from gpt2tg.engine.cpu.startup import check_device
from gpt2tg.errors import UserError
from gpt2tg.io.processes import is_main_process, process_count
from gpt2tg.options import BUNDLED_MODEL, DeviceOptions, EvaluationOptions, TrainingOptions
from gpt2tg.training.data.corpus import Corpus
from gpt2tg.training.data.sources import Sources, plan_sources, scan_evaluation
from gpt2tg.training.output.layout import is_search
from gpt2tg.training.output.reservation import check_output
from gpt2tg.training.output.resumable import check_resumable


def check_training(options: TrainingOptions, model_name: str, device: str) -> Sources | None:
    """Check the flags, the text, the output directory and the model of a training run.

    Only the main process looks at the text and the output directory.

    Returns:
        The survey of the text; None in the other processes.

    Raises:
        UserError: names the flag or the file, and what to do.
    """
    check_training_device(device)
    check_processes(options)
    check_packages(options)
    sources = None
    if is_main_process():
        check_directory(options)
        sources = plan_sources(options, model_name)
    if not options.from_scratch:
        check_existing(options, model_name)
    return sources


def check_evaluation(options: EvaluationOptions, checkpoint: Checkpoint, device: str) -> Corpus:
    """Check the flags, the text and the model of an evaluation, and return the survey of the text.

    Raises:
        UserError: names the flag or the file, and what to do.
    """
    check_device(device)
    found = scan_evaluation(options, checkpoint)
    check_stride(options.stride, checkpoint.shape.n_positions)
    return found


def check_training_device(name: str) -> None:
    """Check --device. Training does not take the number of a GPU: the launcher sets that.

    Raises:
        UserError: the device is unknown, or not available.
    """
    if DeviceOptions(name).device.startswith("cuda:"):
        number = name.removeprefix("cuda:")
        raise UserError(
            f"{name} is for generation: put CUDA_VISIBLE_DEVICES={number} in front of the command", "device"
        )
    check_device(name)


def check_processes(options: TrainingOptions) -> None:
    """Check that no flag needs a single process if several were started.

    Raises:
        UserError: names the flag.
    """
    if process_count() == 1:
        return
    if options.try_:
        raise UserError("trains in a single process: start it without torchrun or accelerate launch", "try")
    if options.auto_batch_size:
        raise UserError("is for a single process: choose a --batch_size that fits", "auto_batch_size")
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() != "true":
        return
    if options.sample_steps:
        raise UserError("needs the whole model in one process, but FSDP shards it: leave the flag out", "sample_steps")
    if options.load_in_4bit:
        raise UserError("is not for FSDP, which shards weights in 16 or 32 bits: leave the flag out", "load_in_4bit")
    if options.optim == "muon":
        raise UserError("muon needs whole matrices, but FSDP shards them: choose another optimizer", "optim")


def check_packages(options: TrainingOptions) -> None:
    """Check that the packages are installed that only some flags need.

    Raises:
        UserError: one is missing.
    """
    if options.load_in_4bit and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("needs the package bitsandbytes: pip install bitsandbytes", "load_in_4bit")


def check_directory(options: TrainingOptions) -> None:
    """Check that the run may use the output directory and, with --resume, that there is something to resume.

    Raises:
        UserError: names the directory.
    """
    directory = Path(options.output_dir)
    if not options.dry_run:
        check_output(directory, options.resume is not None, options.overwrite)
    if options.resume is not None and not options.try_:
        check_resumable(directory, options.resume)
    if options.resume is not None and options.try_ and not options.dry_run and not is_search(directory):
        raise UserError(f"found no search in {directory}: start without --resume, or in another --output_dir", "resume")


def check_existing(options: TrainingOptions, model_name: str) -> Checkpoint:
    """Return the checkpoint to fine-tune, after checking its files and its config.

    Raises:
        UserError: no such model, missing files, another architecture, more frozen layers than the model has, a block
            size over its context length, or a model that --overwrite would delete.
    """
    checkpoint = resolve_checkpoint(model_name)
    directory, shape = checkpoint.directory, checkpoint.shape
    sizes = {one.block_size for one in options.tries()} if options.try_ else {options.block_size}
    if (longest := max(sizes)) > shape.n_positions:
        raise UserError(
            f"{longest} is over the context length of {model_name}: use at most {shape.n_positions}",
            "block_size",
        )
    check_layers(options, shape.n_layer)
    overwrites = options.overwrite and not options.dry_run
    if overwrites and directory.resolve().is_relative_to(Path(options.output_dir).resolve()):
        raise UserError(f"would delete {directory}, the model to start from: choose another --output_dir", "overwrite")
    return checkpoint


def advice_on_hub(options: TrainingOptions, model_name: str) -> str | None:
    """Return advice if --push_to_hub would upload an adapter whose base model is not on the hub; otherwise None."""
    is_on_hub = model_name != BUNDLED_MODEL and not is_directory(model_name)
    if not options.push_to_hub or not options.lora or is_on_hub:
        return None
    way_out = "leave out --no_merge to upload the merged model" if options.no_merge else "use the merged model"
    return f"--push_to_hub: {model_name} is not on the hub, so that others cannot load the adapter alone: {way_out}"


def check_layers(options: TrainingOptions, n_layer: int) -> None:
    """Check that the model has as many layers as are to be frozen.

    Raises:
        UserError: it has fewer.
    """
    if (frozen := options.freeze_layers) > n_layer:
        raise UserError(
            f"{frozen} is more than the {n_layer} layers of the model: use at most {n_layer}", "freeze_layers"
        )


def check_stride(stride: int | None, positions: int) -> None:
    """Check that consecutive windows overlap: the first token of a window has no context.

    Args:
        positions: the context length of the model.

    Raises:
        UserError: the stride is not shorter than the context length.
    """
    if stride is not None and stride >= positions:
        raise UserError(
            f"{stride} is not shorter than the context length {positions}: use at most {positions - 1}", "stride"
        )
