"""Fine-tuning on transformers' Trainer: the recipe, from options to a directory that can be generated from."""

from __future__ import annotations

import math
import os
import platform
import shutil
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

# Batches are encoded by many threads of the tokenizer before the data loader could ever fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import accelerate
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor
from transformers import GPT2LMHeadModel, IntervalStrategy, Trainer, TrainingArguments

from gpt2tg import __version__
from gpt2tg.errors import RunError, UserError, one_line
from gpt2tg.options import DEFAULT_MAX_LENGTH, ModelNameOptions, TrainingOptions
from gpt2tg.training.callbacks import Progress, duration, require_finite, say
from gpt2tg.training.data import NO_LOSS, TrainingData, collate, load_data
from gpt2tg.training.directory import check_output, check_resumable, make_readable, open_output, write_run
from gpt2tg.training.evaluate import perplexity
from gpt2tg.training.model import check_existing, existing_model, new_model, transformers_tokenizer
from gpt2tg.training.sources import plan_sources

# In what torch says when it cannot write a file; it has no class of its own for that.
TORCH_WRITER = "inline_container"

# Fewer examples than this and a model learns them by heart before it learns their style.
FEW_EXAMPLES = 1000


@dataclass(frozen=True)
class Outcome:
    """What a run achieved. Losses are means per token in nats; None where nothing was held out."""

    output_dir: Path
    steps: int
    seconds: float
    loss_before: float | None
    loss_after: float | None


def finetune(options: TrainingOptions, model_name: str = ModelNameOptions.model_name) -> Outcome:
    """Train as the options say and leave a model with its tokenizer in the output directory.

    Everything that can be refused is refused before anything is written.

    Args:
        model_name: the model to start from; not looked at with `from_scratch`.

    Raises:
        UserError: an option or a file cannot be used.
        RunError: the loss is not finite, or the directory cannot be written to.
    """
    _quiet_libraries()
    output_dir = Path(options.output_dir)
    checkpoint = check_output(output_dir, options.resume, options.overwrite)
    sources = plan_sources(options)
    directory = None if options.from_scratch else check_existing(options, model_name)
    if directory is not None and options.overwrite and directory.resolve().is_relative_to(output_dir.resolve()):
        raise UserError(f"would remove {directory}, the model to start from: choose another --output_dir", "overwrite")
    if checkpoint is not None:
        check_resumable(output_dir, options, None if directory is None else model_name)
    arguments = training_arguments(options, measure=bool(options.validation_file or options.validation_split))
    _advise(options, sources[0].found.examples)

    transformers.set_seed(options.seed)
    model, tokenizer = (
        new_model(sources[0], options) if directory is None else existing_model(directory, options.dropout)
    )
    if options.generate_samples:
        _check_sample_prompt(options, len(tokenizer.encode(options.prompt)), model.config.n_positions)
    data = load_data(sources, tokenizer, options)
    _announce(options, model, data, "a new model" if directory is None else model_name)

    open_output(output_dir, options.overwrite)
    if data.validation is None:
        arguments.eval_strategy, arguments.eval_on_start = IntervalStrategy.NO, False
    run = _run_record(options, None if directory is None else model_name, data)
    write_run(output_dir, run)
    trainer = LanguageTrainer(
        model=model,
        args=arguments,
        data_collator=collate(options.block_size, tokenizer.end_id),
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=transformers_tokenizer(tokenizer, model.config.n_positions),
        callbacks=[Progress(options.batch_size * options.gradient_accumulation_steps * options.block_size)],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    outcome = _train(trainer, output_dir, checkpoint)
    write_run(output_dir, {**run, "outcome": {**asdict(outcome), "output_dir": str(output_dir)}})
    _conclude(outcome)
    return outcome


class LanguageTrainer(Trainer):
    """The Trainer of transformers with a validation loss that is exact: a mean over tokens, not over batches."""

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Never save a broken model; let others than its owner read a good one."""
        self.require_finite_weights()
        super()._save_checkpoint(model, trial)
        if self.is_world_process_zero():
            make_readable(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")

    def require_finite_weights(self) -> None:
        """Raises RunError where a weight is no number."""
        largest = max(float(weight.detach().abs().amax()) for weight in self.model.parameters())
        broken = any(not torch.isfinite(weight).all() for weight in self.model.parameters())
        require_finite("largest weight", math.nan if broken else largest, self.state.global_step)

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Loss and perplexity of the validation blocks; only two numbers per batch are kept."""
        self.model.eval()
        total = torch.zeros(2, dtype=torch.float64)  # loss in nats, tokens
        for batch in self.get_eval_dataloader():
            total += self._loss_and_tokens(batch)
        self.model.train()
        loss = (total[0] / total[1]).item()
        metrics = {f"{metric_key_prefix}_loss": loss, f"{metric_key_prefix}_perplexity": perplexity(loss)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def _loss_and_tokens(self, batch: dict[str, Tensor]) -> Tensor:
        tokens = (batch["labels"][:, 1:] != NO_LOSS).sum()
        with self.compute_loss_context_manager():
            loss = self.compute_loss(self.model, self._prepare_inputs(batch))
        both = torch.stack([loss.detach() * tokens, tokens]).to(torch.float32)
        return self.accelerator.reduce(both).cpu().double()


def training_arguments(options: TrainingOptions, measure: bool) -> TrainingArguments:
    """Our options in the terms of transformers. Nothing else in the project builds TrainingArguments.

    Args:
        measure: whether there is validation text.
    """
    on_gpu = torch.cuda.is_available()
    if options.fp16 and not on_gpu:
        say("--fp16 needs a CUDA GPU and there is none: training in fp32")
    if options.bf16 and on_gpu and not torch.cuda.is_bf16_supported():
        raise UserError(f"is not supported by {torch.cuda.get_device_name()}: use --fp16", "bf16")
    return TrainingArguments(
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
        optim="adamw_torch_fused",
        fp16=options.fp16 and on_gpu,
        bf16=options.bf16,
        use_cpu=not on_gpu and not torch.backends.mps.is_available(),  # bf16 on a CPU has to be told so
        **_checkpointing(options),
        eval_strategy="epoch" if measure else "no",
        eval_on_start=measure,
        save_strategy="steps",
        save_steps=options.save_steps,
        save_total_limit=options.save_total_limit,
        logging_steps=options.logging_steps,
        logging_nan_inf_filter=False,  # a broken loss must be seen, and looking at each would stall the GPU
        seed=options.seed,
        dataloader_pin_memory=on_gpu,
        prediction_loss_only=True,
        disable_tqdm=True,
        report_to="none",
    )


def _checkpointing(options: TrainingOptions) -> dict[str, Any]:
    """Transformers is renaming gradient checkpointing to activation checkpointing: use the name it knows."""
    if not options.gradient_checkpointing:
        return {}
    known = {field.name for field in fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}


def _train(trainer: LanguageTrainer, output_dir: Path, checkpoint: Path | None) -> Outcome:
    started = time.monotonic()
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trainer.require_finite_weights()
        if trainer.is_world_process_zero():
            trainer.model.config.use_cache = True  # the Trainer turned it off, for training alone
            trainer.model.save_pretrained(output_dir)
            trainer.processing_class.save_pretrained(output_dir)
            make_readable(output_dir)
    except torch.OutOfMemoryError as error:
        raise RunError(
            "out of memory: lower --batch_size and raise --gradient_accumulation_steps by the same factor, add "
            f"--gradient_checkpointing or --bf16, or lower --block_size ({str(error).partition('.')[0]})"
        ) from None
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and (isinstance(error, RunError) or TORCH_WRITER not in str(error)):
            raise
        free = shutil.disk_usage(output_dir).free / 1e9
        raise RunError(
            f"cannot write to {output_dir} ({free:.1f} GB free): {one_line(error)}; earlier checkpoints are whole, "
            "go on from them with --resume once there is room"
        ) from None
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    return Outcome(
        output_dir=output_dir,
        steps=trainer.state.global_step,
        seconds=time.monotonic() - started,
        loss_before=losses[0] if losses else None,
        loss_after=losses[-1] if losses else None,
    )


def _check_sample_prompt(options: TrainingOptions, tokens: int, positions: int) -> None:
    """Samples come after hours of training: what cannot work is refused before."""
    longest = min(DEFAULT_MAX_LENGTH, positions)
    if tokens >= longest:
        raise UserError(f"of {tokens} tokens leaves no room in samples of {longest}: make it shorter", "prompt")


def _advise(options: TrainingOptions, examples: int) -> None:
    if options.examples != "file" and examples < FEW_EXAMPLES:
        say(
            f"advice: {_count(examples, 'example')} is little, {FEW_EXAMPLES:,} or more is better: "
            "watch the validation loss, and train fewer --epochs when it rises"
        )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _announce(options: TrainingOptions, model: GPT2LMHeadModel, data: TrainingData, name: str) -> None:
    say(f"model: {name}, {model.num_parameters() / 1e6:.1f}M parameters")
    held_out = f"{_count(len(data.validation), 'block')} held out" if data.validation else "nothing held out"
    say(
        f"data: {_count(data.train_examples, 'example')} in {_count(len(data.train), 'block')} of "
        f"{options.block_size} tokens, {held_out}"
    )


def _conclude(outcome: Outcome) -> None:
    say(f"reached step {outcome.steps} in {duration(outcome.seconds)}; the model is in {outcome.output_dir}")
    if outcome.loss_before is not None and outcome.loss_after is not None:
        say(
            f"held-out loss {outcome.loss_before:.4f} before, {outcome.loss_after:.4f} after; "
            f"perplexity {perplexity(outcome.loss_before):.2f} before, {perplexity(outcome.loss_after):.2f} after"
        )


def _run_record(options: TrainingOptions, model_name: str | None, data: TrainingData) -> dict[str, Any]:
    return {
        "model_name": model_name,
        "options": asdict(options),
        "data": {
            "train_examples": data.train_examples,
            "validation_examples": data.validation_examples,
            "train_blocks": len(data.train),
        },
        "versions": {
            "gpt2tg": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "accelerate": accelerate.__version__,
        },
    }


def _quiet_libraries() -> None:
    """Leave the talk to us: what the libraries would print is either said here better or is no news."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
