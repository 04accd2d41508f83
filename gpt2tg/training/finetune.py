"""Fine-tuning on transformers' Trainer: the recipe, from options to a directory that can be generated from."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

# Batches are encoded by many threads of the tokenizer before the data loader could ever fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import accelerate
import torch
import transformers
from accelerate.utils import release_memory
from accelerate.utils.memory import should_reduce_batch_size
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from transformers import GPT2LMHeadModel, TrainerCallback, TrainerState, TrainingArguments
from transformers.integrations import integration_utils as integrations

from gpt2tg import __version__
from gpt2tg.checkpoint.adapters import ADAPTER_CONFIG
from gpt2tg.checkpoint.find import read_shape
from gpt2tg.checkpoint.runs import saved_checkpoints, step_of_model
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.errors import Interrupted, RunError, UserError, masked, one_line
from gpt2tg.generation.generator import choose_device
from gpt2tg.options import DEFAULT_MAX_LENGTH, NEWEST, DeviceOptions, ModelNameOptions, TrainingOptions
from gpt2tg.training.callbacks import (
    Pace,
    Progress,
    Stopwatch,
    duration,
    held_step,
    is_out_of_patience,
    say,
    show,
)
from gpt2tg.training.checks import check_existing, check_layers, check_processes, check_training_device
from gpt2tg.training.data.advice import advice, counted
from gpt2tg.training.data.batches import collate
from gpt2tg.training.data.sources import Sources, plan_sources
from gpt2tg.training.data.training_data import TrainingData, load_data
from gpt2tg.training.devices import device_bytes
from gpt2tg.training.evaluate import perplexity
from gpt2tg.training.fields import trainer_fields, without_secrets
from gpt2tg.training.interruption import Interruption
from gpt2tg.training.model.build import existing_model, new_model, shape_of_model
from gpt2tg.training.model.copied_files import CopiedFiles, files_to_copy
from gpt2tg.training.model.cpu_speedups import keep_freed_memory
from gpt2tg.training.model.lora import base_reference, choose_weights
from gpt2tg.training.model.memory_estimate import out_of_memory, smaller_batches
from gpt2tg.training.model.new_tokenizer import saved_tokenizer, train_tokenizer, transformers_tokenizer
from gpt2tg.training.output.directory import RECORD_FILES, SAMPLES_FILE, STATE_FILE, RunDirectory, find_resumable
from gpt2tg.training.output.identity import check_same_run, identity
from gpt2tg.training.output.records import Records
from gpt2tg.training.output.reservation import Reservation
from gpt2tg.training.output.restoring import Damaged
from gpt2tg.training.plan import fused_attention, plan, show_blocks, total_steps
from gpt2tg.training.processes import by_main_process, is_main_process
from gpt2tg.training.samples import Samples
from gpt2tg.training.trainer import LanguageTrainer

# torch.compile takes about a minute for a model of GPT-2's depth, and then saves some tens of milliseconds a pass.
PASSES_TO_REPAY_COMPILING = 2000

# In what torch says when it cannot write a file; it has no class of its own for that.
TORCH_WRITER = "inline_container"


@dataclass(frozen=True)
class Outcome:
    """What a run achieved. Losses are means per token in nats; None where nothing was measured.

    `held_step` is the step of the model that the directory itself holds, and `loss_after` is that model's.
    """

    output_dir: Path
    steps: int
    held_step: int
    seconds: float
    loss_before: float | None
    loss_after: float | None


def finetune(
    options: TrainingOptions,
    model_name: str = ModelNameOptions.model_name,
    device: str = DeviceOptions.device,
    callbacks: Sequence[TrainerCallback] = (),
    sources: Sources | None = None,
) -> Outcome | None:
    """Train as the options say and leave a model with its tokenizer in the output directory.

    Everything that can be refused is refused before anything is written. On a CPU glibc is told to keep what is freed;
    that setting stays for the process.

    Args:
        model_name: the model to start from; not looked at with `from_scratch`.
        device: where to compute: auto, cpu, cuda or mps.
        callbacks: further ones for the Trainer.
        sources: as `plan_sources` finds them, where the text has been looked through before.

    Returns:
        What was achieved; None after a `dry_run`, which only prints the plan, on stdout.

    Raises:
        UserError: an option or a file cannot be used.
        RunError: the loss is not finite, the directory cannot be written to, memory ran out, or all its checkpoints
            are broken.
        Interrupted: a signal ended the run; its `is_saved` tells whether there is something to resume.
    """
    _quiet_libraries()
    check_training_device(device)
    check_processes(options)
    with Interruption() as interruption:
        return _finetune(options, model_name, choose_device(device), interruption, callbacks, sources)


def _finetune(
    options: TrainingOptions,
    model_name: str,
    device: torch.device,
    interruption: Interruption,
    callbacks: Sequence[TrainerCallback],
    sources: Sources | None,
) -> Outcome | None:
    arguments = training_arguments(options, device)
    if arguments.world_size == 1:
        _tell_of_idle_gpus(device)
    place = Reservation(Path(options.output_dir), options.resume is not None, options.overwrite)
    with contextlib.ExitStack() as held:

        def reserve() -> Path | None:
            """The checkpoint to go on from, where the run resumes."""
            if not options.dry_run:
                held.enter_context(place)
            return None if options.resume is None else find_resumable(Path(options.output_dir), options.resume)

        checkpoint = by_main_process(reserve)
        interruption.is_saved = checkpoint is not None
        run = _Run(options, model_name, device, arguments, interruption, callbacks, checkpoint, sources)
        run.announce()
        if options.dry_run:
            run.show_plan()
            return None
        state = None if checkpoint is None else run.ended_state(checkpoint)
        if state is not None and run.is_complete(state):
            say(f"nothing to do: the run has reached its end at step {state.global_step:,}")
            return _outcome(run.output_dir, state)
        with told_when_full(run.output_dir):
            run.assemble(arguments)
            by_main_process(place.open)
            if is_main_process():
                run.directory.update(**run.record())
            was_over = run.train(checkpoint, state)
            interruption.is_saved = True
            if is_main_process():
                run.finish(was_over)
    outcome = _outcome(run.output_dir, run.trainer.state)
    _conclude(outcome)
    return outcome


class _Run:
    """What a run is made of. To make one reads the text and the model, and refuses what cannot be used."""

    def __init__(
        self,
        options: TrainingOptions,
        model_name: str,
        device: torch.device,
        arguments: TrainingArguments,
        interruption: Interruption,
        callbacks: Sequence[TrainerCallback],
        checkpoint: Path | None,
        sources: Sources | None,
    ) -> None:
        """`checkpoint` is the one to go on from; `sources` are there where the text has been looked through before."""
        self.options = options
        self.output_dir = Path(options.output_dir)
        self.directory = RunDirectory(self.output_dir, options.save_total_limit)
        self._device, self._arguments = device, arguments
        self._interruption, self._callbacks = interruption, callbacks
        self._sources = by_main_process(lambda: sources or plan_sources(options))
        for line in dict.fromkeys(line for side in self._sources if side is not None for line in side.corpus.notices):
            say(line)
        self._checkpoint = checkpoint
        self._start = None if options.from_scratch else check_existing(options, model_name)
        self._model_name = None if self._start is None else model_name
        self._model, self._tokenizer = self._make_model()
        check_layers(options, self._model.config.n_layer)
        if options.generate_samples or options.sample_steps:
            tokens = len(self._tokenizer.encode(options.prompt))
            _check_sample_prompt(options, tokens, self._model.config.n_positions)
        with arguments.main_process_first():  # the others find the tokens in the cache
            self._data = load_data(self._sources, self._tokenizer, options)
        self._shape = shape_of_model(self._model, self._tokenizer.end_id)
        self._steps = total_steps(options, len(self._data.train), arguments.world_size)
        self._compiles = is_compiled(options, device, self._steps)

    def _make_model(self) -> tuple[GPT2LMHeadModel, TextTokenizer]:
        transformers.set_seed(self.options.seed)
        if self._start is None:
            return new_model(self._new_tokenizer, self.options), self._new_tokenizer
        return existing_model(self._start, self.options.dropout)

    @functools.cached_property
    def _new_tokenizer(self) -> TextTokenizer:
        """Of a run from scratch: trained on the text, or as the checkpoint has it."""
        if self._checkpoint is not None:
            return saved_tokenizer(self._checkpoint)
        return by_main_process(lambda: train_tokenizer(self._sources[0], self.options.vocab_size))

    def announce(self) -> None:
        """Say what is trained on what, with advice on the data."""
        for line in advice(self._sources, self._data, self.options):
            say(f"advice: {line}")
        _announce(self.options, self._model, self._data, self._name, self._arguments.world_size)
        if is_main_process():
            for line in show_blocks(self._data, self._tokenizer, self.options):
                show(line)

    @functools.cached_property
    def _traits(self) -> dict[str, Any]:
        """What a resumed run must have in common with this one. To be asked for before any weight changes."""
        world_size = self._arguments.world_size
        is_new = self._start is None
        return by_main_process(
            lambda: identity(self.options, self._model, self._tokenizer, is_new, self._data, world_size)
        )

    @property
    def _name(self) -> str:
        return self._model_name or "a new model"

    def show_plan(self) -> None:
        """Print it, on stdout."""
        if is_main_process():
            world_size = self._arguments.world_size
            for line in plan(self.options, self._model.config, self._shape, self._data, self._device, world_size):
                show(line)

    def ended_state(self, checkpoint: Path) -> TrainerState | None:
        """The state in the checkpoint to go on from, where nothing is left to train.

        Raises:
            UserError: the checkpoint is that of another run.
        """
        check_same_run(checkpoint, self._traits, self.options.resume_anyway)
        state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
        return state if _is_over(state, self.options, self._steps) else None

    def is_complete(self, state: TrainerState) -> bool:
        """Whether the output directory holds what a run that has ended is to leave there, and nothing is to be sent."""
        is_adapter_alone = (self.output_dir / ADAPTER_CONFIG).is_file()
        waits = self.options.push_to_hub or (self.options.lora and not self.options.no_merge and is_adapter_alone)
        return not waits and self.directory.holds(held_step(state, self.options.keep))

    def record(self) -> dict[str, Any]:
        """What run.json says of the run before it begins."""
        files = [*RECORD_FILES, *([SAMPLES_FILE] if self.options.sample_steps else [])]
        return {**_run_record(self.options, self._model_name, self._data, self._arguments), "files": files}

    def assemble(self, arguments: TrainingArguments) -> None:
        """Make the trainer, with all that watches it. Nothing is written yet but, where there was none, a directory.

        Raises:
            RunError: the hub is to have the model and refuses.
        """
        options, data, traits = self.options, self._data, self._traits  # before any weight changes
        base = "" if self._start is None else base_reference(self._name, self._start)
        model = choose_weights(self._model, options, base)
        if self._compiles:
            model.transformer.compile()
        tokens = options.batch_size * options.gradient_accumulation_steps * options.block_size
        stopwatch = Stopwatch(tokens * arguments.world_size)
        trainer = LanguageTrainer(
            directory=self.directory,
            identity=traits,
            keep=options.keep,
            eval_steps=options.eval_steps,
            stopwatch=stopwatch,
            interruption=self._interruption,
            pad_id=self._tokenizer.end_id,
            model=model,
            args=arguments,
            data_collator=collate(options.block_size, self._tokenizer.end_id),
            train_dataset=data.train,
            eval_dataset=data.validation,
            processing_class=self._side_files(),
            callbacks=[Progress(stopwatch), *self._callbacks],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.add_callback(self._records())
        if options.sample_steps:
            trainer.add_callback(Samples(options, self._tokenizer, self.output_dir, stopwatch))
        measures = data.validation is not None
        trainer.add_callback(Pace(measures, options.eval_steps, options.early_stopping_patience, trainer.agreement))
        self.trainer = trainer

    def _side_files(self) -> CopiedFiles | transformers.PreTrainedTokenizerFast:
        """What saves the tokenizer into each checkpoint, and what else the model to start from brought."""
        if self._start is None:
            return transformers_tokenizer(self._tokenizer, self._model.config.n_positions)
        return files_to_copy(self._start, read_shape(self._start), self._tokenizer)

    def _records(self) -> Records:
        return Records(self.directory, f"{self._name} on {_file_names(self.options)}")

    def train(self, checkpoint: Path | None, state: TrainerState | None) -> bool:
        """Train to the end, or have been there with this state; with smaller batches where memory does not suffice.

        A checkpoint that turns out not to fit the model is passed over for the one before it.

        Returns:
            Whether nothing was left to train.

        Raises:
            Damaged: the checkpoint that --resume names does not fit.
            RunError: out of memory.
            Interrupted: a signal ended it.
        """
        geometry, broken = self.options, set[Path]()
        while state is None:
            try:
                _train(self.trainer, checkpoint, self._interruption, self.options.early_stopping_patience)
                return False
            except Damaged as error:
                if checkpoint is None or self.options.resume != NEWEST:
                    raise
                say(f"{error}; it is passed over")
                broken.add(checkpoint)
            except RuntimeError as error:
                if not (isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)):
                    raise
                geometry = self._smaller(geometry)
            if self.trainer.has_saved or broken:
                checkpoint = find_resumable(self.output_dir, NEWEST, broken)
                state = self.ended_state(checkpoint)
            del self.trainer, self._model
            release_memory()
            self._model = self._make_model()[0]
            self.assemble(training_arguments(geometry, self._device))
        self.trainer.state = state
        return True

    def _smaller(self, geometry: TrainingOptions) -> TrainingOptions:
        """Smaller batches after memory ran out with these."""
        fused = fused_attention(self._model.config, self.options, self._device)
        smaller = smaller_batches(geometry) if self.options.auto_batch_size else None
        if smaller is None:
            raise RunError(out_of_memory(self._shape, geometry, device_bytes(self._device), fused))
        say(
            f"out of memory: going on with --batch_size {smaller.batch_size} "
            f"--gradient_accumulation_steps {smaller.gradient_accumulation_steps}, as much a step as before"
        )
        return smaller

    def finish(self, was_over: bool) -> None:
        """Let the directory hold the model, and the hub where it is to have it."""
        state = self.trainer.state
        self.directory.publish(held_step(state, self.options.keep))
        if self.options.lora and not self.options.no_merge:
            self.directory.merge_adapter()
        if was_over:
            self._records().write(state)
        if self.options.push_to_hub:
            self.trainer.push_to_hub()


def _is_over(state: TrainerState, options: TrainingOptions, last_step: int) -> bool:
    """Whether the run has nothing left to train; says where it goes on."""
    if state.global_step >= last_step or is_out_of_patience(state.log_history, options.early_stopping_patience):
        return True
    say(f"resuming at step {state.global_step:,} of {last_step:,}, {last_step - state.global_step:,} to go")
    return False


@contextlib.contextmanager
def told_when_full(path: Path) -> Iterator[None]:
    """Turn what libraries raise when they cannot write into one RunError with the cause."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and (isinstance(error, RunError) or TORCH_WRITER not in str(error)):
            raise
        free = f" ({shutil.disk_usage(path).free / 1e9:.2f} GB free)" if path.is_dir() else ""
        cause = "a file could not be written whole" if isinstance(error, RuntimeError) else one_line(error)
        way_out = "earlier checkpoints are whole, go on from them with --resume"
        if not saved_checkpoints(path):
            way_out = "nothing was saved yet, start again with --overwrite"
        raise RunError(f"cannot write to {path}{free}: {cause}; {way_out} once there is room") from None


def training_arguments(options: TrainingOptions, device: torch.device) -> TrainingArguments:
    """Our options in the terms of transformers. Nothing else in the project builds TrainingArguments.

    When to measure is decided by `Pace`, which checkpoints to remove by `RunDirectory`.
    """
    _check_services(options.report_to)
    on_gpu = device.type == "cuda"
    if options.fp16 and not on_gpu:
        say("--fp16 needs a CUDA GPU and there is none: training in fp32")
    if options.bf16 and on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"is not supported by {torch.cuda.get_device_name()}: use --fp16", "bf16")
    settings = dict(
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
        optim=options.optim,
        fp16=options.fp16 and on_gpu,
        bf16=options.bf16,
        use_cpu=device.type == "cpu",  # bf16 on a CPU has to be told so
        **_checkpointing(options),
        ddp_find_unused_parameters=False,  # all that is trained takes part in each step
        eval_strategy="no",
        save_strategy="steps",
        save_steps=options.save_steps,
        logging_steps=options.logging_steps,
        logging_nan_inf_filter=False,  # a broken loss must be seen, and looking at each would stall the GPU
        seed=options.seed,
        dataloader_pin_memory=on_gpu,
        prediction_loss_only=True,
        disable_tqdm=True,
        report_to=list(options.report_to) or "none",
        push_to_hub=options.push_to_hub,
    )
    others = trainer_fields(options.trainer)
    try:
        arguments = TrainingArguments(**settings, **others)
        _require_loader(arguments)
    except (ValueError, TypeError, ImportError) as error:
        if not others:
            raise
        raise UserError(f"{' '.join(map(masked, options.trainer))}: {one_line(error)}", "trainer") from None
    # Over several GPUs the Trainer would spread one process by DataParallel, which is slow and changes the batch.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _require_loader(arguments: TrainingArguments) -> None:
    """Raises ValueError where torch makes no data loader with these settings, which the Trainer asks for much later."""
    DataLoader(
        [0],
        num_workers=arguments.dataloader_num_workers,
        persistent_workers=arguments.dataloader_persistent_workers,
        prefetch_factor=arguments.dataloader_prefetch_factor,
        multiprocessing_context=arguments.dataloader_multiprocessing_context,
    )


def _tell_of_idle_gpus(device: torch.device) -> None:
    if device.type == "cuda" and (count := torch.cuda.device_count()) > 1:
        say(f"{count} GPUs are there, one is used: torchrun --nproc_per_node {count} uses all")


def is_compiled(options: TrainingOptions, device: torch.device, steps: int) -> bool:
    """Whether the steps are compiled: where it was left open, when that is likely to be repaid."""
    if options.compile != "auto":
        return options.compile == "on"
    passes = steps * options.gradient_accumulation_steps
    return device.type == "cuda" and os.name != "nt" and passes >= PASSES_TO_REPAY_COMPILING


def _check_services(names: tuple[str, ...]) -> None:
    there = integrations.get_available_reporting_integrations()
    for name in names:
        if name not in (*there, "all", "none"):
            known = ", ".join(integrations.INTEGRATION_TO_CALLBACK)
            raise UserError(f"{name} is not installed here, or not one of {known}", "report_to")


def _checkpointing(options: TrainingOptions) -> dict[str, Any]:
    """Transformers is renaming gradient checkpointing to activation checkpointing: use the name it knows."""
    if not options.gradient_checkpointing:
        return {}
    known = {field.name for field in fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}


def _train(trainer: LanguageTrainer, checkpoint: Path | None, interruption: Interruption, patience: int | None) -> None:
    """Train to the end.

    Raises:
        Interrupted: a signal ended it before; a checkpoint of its last step is saved.
    """
    interruption.training = True
    if trainer.args.device.type == "cpu":
        keep_freed_memory()
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        interruption.training = False
    state = trainer.state
    is_over = state.global_step >= state.max_steps or is_out_of_patience(state.log_history, patience)
    if trainer.is_interrupted() and not is_over:
        saved = trainer.directory.path / f"checkpoint-{state.global_step}"
        raise Interrupted(
            f"step {state.global_step:,} of {state.max_steps:,} is saved in {saved}",
            interruption.signal or signal.SIGTERM,  # it may have come to another process
            is_saved=True,
        )


def _outcome(output_dir: Path, state: TrainerState) -> Outcome:
    losses = {entry["step"]: entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry}
    seconds = [entry["seconds"] for entry in state.log_history if "seconds" in entry]
    held = step_of_model(output_dir) or state.global_step
    return Outcome(
        output_dir=output_dir,
        steps=state.global_step,
        held_step=held,
        seconds=max(seconds, default=0.0),
        loss_before=losses.get(0),
        loss_after=losses.get(held),
    )


def _check_sample_prompt(options: TrainingOptions, tokens: int, positions: int) -> None:
    """Samples come after hours of training: what cannot work is refused before."""
    longest = min(DEFAULT_MAX_LENGTH, positions)
    if tokens >= longest:
        raise UserError(f"of {tokens} tokens leaves no room in samples of {longest}: make it shorter", "prompt")


def _announce(options: TrainingOptions, model: GPT2LMHeadModel, data: TrainingData, name: str, processes: int) -> None:
    say(f"model: {name}, {model.num_parameters() / 1e6:.1f}M parameters")
    held_out = f"{counted(len(data.validation), 'block')} held out" if data.validation else "nothing held out"
    say(
        f"data: {counted(data.train_examples, 'example')} in {counted(len(data.train), 'block')} of "
        f"{options.block_size} tokens, {held_out}"
    )
    if processes > 1:
        blocks = processes * options.batch_size * options.gradient_accumulation_steps
        say(
            f"each step: {processes} processes x batch {options.batch_size} x accumulation "
            f"{options.gradient_accumulation_steps} = {blocks} blocks, {blocks * options.block_size:,} tokens"
        )


def _conclude(outcome: Outcome) -> None:
    held = "" if outcome.held_step == outcome.steps else f", that of step {outcome.held_step:,}, the best"
    say(f"reached step {outcome.steps} in {duration(outcome.seconds)}; the model is in {outcome.output_dir}{held}")
    if outcome.loss_before is not None and outcome.loss_after is not None:
        say(
            f"held-out loss {outcome.loss_before:.4f} before, {outcome.loss_after:.4f} after; "
            f"perplexity {perplexity(outcome.loss_before):.2f} before, {perplexity(outcome.loss_after):.2f} after"
        )
        if outcome.loss_after > outcome.loss_before:
            say("the model before training knew the held-out text better: lower --learning_rate, or train on more text")


def _run_record(
    options: TrainingOptions, model_name: str | None, data: TrainingData, arguments: TrainingArguments
) -> dict[str, Any]:
    return {
        "model_name": model_name,
        "options": {**asdict(options), "trainer": without_secrets(options.trainer)},
        "data": {
            "train_examples": data.train_examples,
            "validation_examples": data.validation_examples,
            "train_blocks": len(data.train),
            "validation_blocks": len(data.validation) if data.validation else 0,
            "fingerprints": data.fingerprints,
        },
        "device": _device(arguments),
        "processes": arguments.world_size,
        "versions": {
            "gpt2tg": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "accelerate": accelerate.__version__,
        },
    }


def _file_names(options: TrainingOptions) -> str:
    first, *others = options.train_file
    return Path(first).name + (f" and {len(others)} more" if others else "")


def _device(arguments: TrainingArguments) -> str:
    if arguments.device.type == "cuda":
        return torch.cuda.get_device_name(arguments.device)
    if arguments.device.type == "cpu":
        return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    return str(arguments.device)


def _quiet_libraries() -> None:
    """Leave the talk to us: what the libraries would print is either said here better or is no news."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
