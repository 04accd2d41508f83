"""Fine-tune a model: the recipe, from options to an output directory that generation can load."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

# Otherwise tokenizers turns its threads off in a process that forks. Ours end before a data loader forks.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import torch
import transformers
from accelerate.utils import release_memory
from transformers import TrainerCallback

from gpt2tg.generation.generator import choose_device
from gpt2tg.options import DeviceOptions, ModelNameOptions, TrainingOptions
from gpt2tg.training.arguments import available_precision, training_arguments
from gpt2tg.training.checks import check_processes, check_training_device
from gpt2tg.training.console import log
from gpt2tg.training.data.sources import Sources
from gpt2tg.training.devices import use_growing_segments
from gpt2tg.training.failures import explain_disk_errors
from gpt2tg.training.interruption import Interruption
from gpt2tg.training.outcome import Outcome, outcome_of
from gpt2tg.training.output.machines import on_every_machine
from gpt2tg.training.output.reservation import Reservation
from gpt2tg.training.output.resumable import find_resumable
from gpt2tg.training.processes import run_on_main_process
from gpt2tg.training.report import log_idle_gpus, log_outcome, log_precision
from gpt2tg.training.run import Run


def finetune(
    options: TrainingOptions,
    model_name: str = ModelNameOptions.model_name,
    device: str = DeviceOptions.device,
    callbacks: Sequence[TrainerCallback] = (),
    sources: Sources | None = None,
) -> Outcome | None:
    """Train as the options say, and leave a model with its tokenizer in the output directory.

    All input is checked before anything is written. On a CPU, glibc is configured to keep freed memory, and on a CUDA
    GPU torch to grow its memory segments; these settings stay for the process.

    Args:
        model_name: the model to start from; ignored with `from_scratch`.
        device: where to compute: auto, cpu, cuda or mps.
        callbacks: additional ones for the Trainer.
        sources: the result of `plan_sources`, if the text was surveyed before.

    Returns:
        The outcome; None after a `dry_run`, which only prints the plan on stdout.

    Raises:
        UserError: an option or a file cannot be used.
        RunError: the loss is not finite, the directory cannot be written to, memory ran out, or all checkpoints are
            damaged.
        Interrupted: a signal ended the run; its `is_saved` tells whether the run can be resumed.
    """
    _silence_libraries()
    check_training_device(device)
    check_processes(options)
    use_growing_segments(device)  # before a device is chosen, which may use the GPU
    try:
        with Interruption() as interruption:
            return _finetune(options, model_name, choose_device(device), interruption, callbacks, sources)
    finally:
        release_memory()  # reference cycles would keep the model until a later garbage collection


def _finetune(
    options: TrainingOptions,
    model_name: str,
    device: torch.device,
    interruption: Interruption,
    callbacks: Sequence[TrainerCallback],
    sources: Sources | None,
) -> Outcome | None:
    options = available_precision(options, device)
    arguments = training_arguments(options, device)
    if arguments.world_size == 1:
        log_idle_gpus(device)
    log_precision(options, arguments, device)
    reservation = Reservation(Path(options.output_dir), options.resume is not None, options.overwrite)
    with contextlib.ExitStack() as stack:
        checkpoint = run_on_main_process(lambda: _reserve(options, reservation, stack))
        interruption.is_saved = checkpoint is not None
        stack.enter_context(on_every_machine(checkpoint))
        run = Run(options, model_name, device, arguments, interruption, callbacks, checkpoint, sources)
        run.log_setup()
        if options.dry_run:
            run.print_plan()
            return None
        final_state = run.load_final_state()
        if final_state is not None and run.is_published(final_state):
            log.info(f"nothing to do: the run has reached its end at step {final_state.global_step:,}")
            return outcome_of(run.output_dir, final_state)
        with explain_disk_errors(run.output_dir):
            run.build_trainer(arguments)
            run_on_main_process(reservation.open)
            run.write_record()
            run.train(final_state)
            interruption.is_saved = True
            run.publish()
    outcome = outcome_of(run.output_dir, run.trainer.state)
    log_outcome(outcome)
    return outcome


def _reserve(options: TrainingOptions, reservation: Reservation, stack: contextlib.ExitStack) -> Path | None:
    """Reserve the output directory until the stack closes, and return the checkpoint to resume from, if any."""
    if not options.dry_run:
        stack.enter_context(reservation)
    return None if options.resume is None else find_resumable(Path(options.output_dir), options.resume)


def _silence_libraries() -> None:
    """Silence transformers: what matters of its messages is logged by us."""
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
