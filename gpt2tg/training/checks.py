"""What can be refused before torch and transformers are imported, which takes seconds: by flags, files and config.json.

Nothing that takes long to import is imported here, nor by what is imported here.
"""

from __future__ import annotations

import os
from pathlib import Path

from gpt2tg.checkpoint.find import find_checkpoint, is_directory, read_shape
from gpt2tg.engine.cpu.startup import check_device
from gpt2tg.errors import UserError
from gpt2tg.options import BUNDLED_MODEL, EvaluationOptions, TrainingOptions
from gpt2tg.training.data.corpus import Corpus
from gpt2tg.training.data.sources import Sources, plan_sources, scan_evaluation
from gpt2tg.training.output.directory import check_resumable, is_search
from gpt2tg.training.output.reservation import check_output
from gpt2tg.training.processes import is_main_process


def check_training(options: TrainingOptions, model_name: str, device: str) -> Sources | None:
    """Refuse what a run cannot be started with.

    Of several processes the main one alone looks at the text and the output directory.

    Returns:
        The text as it was found; None in the other processes.

    Raises:
        UserError: names the flag or the file, and the way out.
    """
    check_training_device(device)
    check_processes(options)
    sources = None
    if is_main_process():
        check_directory(options)
        sources = plan_sources(options)
    if not options.from_scratch:
        check_existing(options, model_name)
    return sources


def check_evaluation(options: EvaluationOptions, model_name: str, device: str) -> Corpus:
    """Refuse what cannot be measured; returns the text as it was found.

    Raises:
        UserError: names the flag or the file, and the way out.
    """
    check_device(device)
    found = scan_evaluation(options)
    directory = find_checkpoint(model_name)
    check_stride(options.stride, read_shape(directory).n_positions)
    return found


def check_training_device(name: str) -> None:
    """As `check_device`; one GPU of several is chosen in another way for training.

    Raises:
        UserError: names the device.
    """
    if name.startswith("cuda:"):
        number = name.removeprefix("cuda:")
        raise UserError(f"{name} is for generating: CUDA_VISIBLE_DEVICES={number} in front of the command", "device")
    check_device(name)


def check_processes(options: TrainingOptions) -> None:
    """Refuse what one process alone can do, where several were started.

    Raises:
        UserError: names the flag.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return
    if options.try_:
        raise UserError("trains in a single process: start it without torchrun or accelerate launch", "try")
    if options.auto_batch_size:
        raise UserError("is for a single process: choose a --batch_size that fits", "auto_batch_size")
    if options.sample_steps and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise UserError("needs the whole model in one process, and FSDP cuts it: leave the flag out", "sample_steps")


def check_directory(options: TrainingOptions) -> None:
    """Refuse an output directory that the run may not have, or in which it has nothing to resume.

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


def check_existing(options: TrainingOptions, model_name: str) -> Path:
    """The directory of the model to fine-tune, once its files and its config are known to suit the options.

    Raises:
        UserError: no such model, files that are missing, another architecture, more frozen layers than there are, a
            block size over its positions, or it is what --overwrite would remove.
    """
    directory = find_checkpoint(model_name)
    shape = read_shape(directory)
    sizes = {one.block_size for one in options.tries()} if options.try_ else {options.block_size}
    if (longest := max(sizes)) > shape.n_positions:
        raise UserError(
            f"{longest} is over the {shape.n_positions} positions of {model_name}: use at most {shape.n_positions}",
            "block_size",
        )
    check_layers(options, shape.n_layer)
    overwrites = options.overwrite and not options.dry_run
    if overwrites and directory.resolve().is_relative_to(Path(options.output_dir).resolve()):
        raise UserError(f"would remove {directory}, the model to start from: choose another --output_dir", "overwrite")
    return directory


def advice_on_hub(options: TrainingOptions, model_name: str) -> str | None:
    """What to say where an adapter is uploaded that others cannot put on its model; None where they can."""
    is_on_hub = model_name != BUNDLED_MODEL and not is_directory(model_name)
    if not options.push_to_hub or not options.lora or is_on_hub:
        return None
    way_out = "leave out --no_merge to upload the whole model" if options.no_merge else "the merged model is whole"
    return f"--push_to_hub: {model_name} is not on the hub, so that others cannot load the adapter alone: {way_out}"


def check_layers(options: TrainingOptions, there: int) -> None:
    """Raises UserError where more layers are to be frozen than there are."""
    if (layers := options.freeze_layers) > there:
        raise UserError(f"{layers} is more than the {there} layers of the model: use at most {there}", "freeze_layers")


def check_stride(stride: int | None, positions: int) -> None:
    """Refuse windows that share no token: the first one of each has no context.

    Raises:
        UserError: names both numbers.
    """
    if stride is not None and stride >= positions:
        raise UserError(
            f"{stride} is too long for the {positions} positions of the model: use at most {positions - 1}", "stride"
        )
