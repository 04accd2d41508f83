"""The options of a training run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from gpt2tg.errors import UserError
from gpt2tg.options.data import TEXT_COLUMN, Examples
from gpt2tg.options.fields import LARGEST_SEED, Options, option
from gpt2tg.options.model import BestOrLast
from gpt2tg.options.prompts import DEFAULT_PROMPT
from gpt2tg.options.trials import read_trials

# The value of `--resume` without a path: the newest complete checkpoint.
NEWEST = "newest"

Scheduler = Literal["linear", "cosine", "constant", "constant_with_warmup"]
Compile = Literal["auto", "on", "off"]
Optimizer = Literal["adamw_torch_fused", "adamw_torch", "adafactor", "sgd", "muon"]
# The linear layers of a GPT-2, as its checkpoints name them. Attention and MLP each have a c_proj.
LoraTarget = Literal["c_attn", "c_proj", "c_fc"]


@dataclass(frozen=True)
class TrainingOptions(Options):
    """A training run: from text files to a checkpoint directory."""

    train_file: tuple[str, ...] = option(
        (),
        "the text to learn from, UTF-8: plain text, .csv, .tsv or .jsonl; several files, patterns like 'texts/*.txt', "
        "or a folder",
        group="data",
        metavar="FILE",
        is_common=True,
        is_required=True,
        accepts_string=True,
    )
    validation_file: tuple[str, ...] = option(
        (),
        "validation text; without it a part of the training examples is held out",
        group="data",
        metavar="FILE",
        shown_default="none",
        accepts_string=True,
    )
    validation_split: float = option(
        0.05,
        "fraction of the text to hold out for validation; 0 disables",
        group="data",
        low=0,
        below=1,
        is_common=True,
    )
    examples: Examples = option(
        "line",
        "what one example of plain text is: a non-empty line, a paragraph (blank lines between), or the whole file; "
        "in a table, each row is one example",
        group="data",
        choices=Examples,
        is_common=True,
    )
    text_column: str | None = TEXT_COLUMN
    block_size: int = option(
        128,
        "context length in training, in tokens; examples are packed into blocks of this size",
        group="data",
        low=4,
        is_common=True,
    )
    no_cross_examples: bool = option(
        False,
        "no attention between examples of the same block: positions and attention restart with each example",
        group="data",
    )

    dry_run: bool = option(
        False,
        "print what the run would do, with its memory and time, and exit",
        group="data",
        is_common=True,
    )
    show_blocks: int = option(
        0, "print the first N blocks as the model will see them, marking tokens without loss", group="data", low=0
    )

    output_dir: str = option(
        "./fine_tuned_model", "where to save the model", group="run", metavar="DIR", is_common=True
    )
    resume: str | None = option(
        None,
        "resume from the newest complete checkpoint of the output directory, or from the one at PATH",
        group="run",
        flag_value=NEWEST,
        metavar="PATH",
        shown_default="off",
        is_common=True,
    )
    resume_anyway: bool = option(
        False, "resume although data, model or settings differ from those that the run started with", group="run"
    )
    overwrite: bool = option(
        False,
        "delete the files of an earlier run in the output directory, and no others",
        group="run",
        is_common=True,
    )
    save_steps: int = option(1000, "steps between checkpoints", group="run", low=1)
    save_minutes: float = option(
        15, "minutes between checkpoints, besides those of --save_steps; 0 disables", group="run", low=0
    )
    save_total_limit: int = option(
        2, "number of checkpoints to keep: the newest, and the best besides; 0 keeps all", group="run", low=0
    )
    eval_steps: int | None = option(
        None,
        "steps between validations, in addition to the one after each epoch",
        group="run",
        low=1,
        shown_default="off",
    )
    keep: BestOrLast = option(
        "best",
        "the checkpoint to save as the final model: that with the lowest validation loss, or the last",
        group="run",
        choices=BestOrLast,
    )
    early_stopping_patience: int | None = option(
        None,
        "early stopping: end after this many validations without a lower loss",
        group="run",
        low=1,
        shown_default="off",
    )
    logging_steps: int = option(10, "steps between log lines", group="run", low=1)
    report_to: tuple[str, ...] = option(
        (),
        "also log to tensorboard, wandb or another service that transformers supports",
        group="run",
        metavar="NAME",
        shown_default="none",
    )
    seed: int = option(
        42,
        "random seed of the initial weights, the order of the data and dropout",
        group="run",
        low=0,
        high=LARGEST_SEED,
    )

    push_to_hub: bool = option(
        False,
        "upload the model to the Hugging Face hub after training; --trainer hub_model_id=NAME names it there",
        group="run",
    )
    try_: tuple[str, ...] = option(
        (),
        "hyperparameter search: train with every combination of these values, stop bad trials early, and keep the "
        "best model: learning_rate=1e-5,5e-5 epochs=2,3",
        group="training",
        metavar="NAME=X,Y",
        shown_default="off",
        accepts_string=True,
    )
    trainer: tuple[str, ...] = option(
        (),
        "any other field of transformers' TrainingArguments: adam_beta1=0.8",
        group="training",
        metavar="NAME=X",
        shown_default="none",
        accepts_string=True,
    )

    epochs: float = option(3.0, "number of epochs", group="training", above=0, is_common=True)
    max_steps: int | None = option(
        None, "end after this many steps, whatever --epochs says", group="training", low=1, shown_default="off"
    )
    batch_size: int = option(4, "batch size: blocks per forward pass", group="training", low=1, is_common=True)
    gradient_accumulation_steps: int = option(
        1, "forward passes per optimizer step; the effective batch size is multiplied by it", group="training", low=1
    )
    learning_rate: float = option(5e-5, "peak learning rate", group="training", above=0, is_common=True)
    lr_scheduler_type: Scheduler = option(
        "linear", "learning rate schedule after the warm-up", group="training", choices=Scheduler
    )
    warmup_steps: int = option(
        0, "warm-up: steps in which the learning rate rises to its peak", group="training", low=0
    )
    weight_decay: float = option(0.0, "weight decay", group="training", low=0)
    adam_beta2: float = option(
        0.999, "AdamW beta2; 0.95 suits training from scratch", group="training", above=0, below=1
    )
    max_grad_norm: float = option(1.0, "clip the gradient norm to X; 0 disables", group="training", low=0)
    dropout: float | None = option(
        None, "dropout probability", group="training", low=0, below=1, shown_default="the model's own"
    )
    fp16: bool = option(
        False, "mixed precision: compute in fp16, with weights in fp32 (CUDA)", group="memory", is_common=True
    )
    bf16: bool = option(
        False, "mixed precision: compute in bfloat16, with weights in fp32", group="memory", is_common=True
    )
    gradient_checkpointing: bool = option(
        False, "recompute activations instead of storing them: a third slower, far less memory", group="memory"
    )
    compile: Compile = option(
        "auto",
        "torch.compile: on, off, or auto (on a CUDA GPU if the run is long enough to gain from it)",
        group="memory",
        choices=Compile,
        flag_value="on",
    )
    auto_batch_size: bool = option(
        False, "when out of memory, halve the batch size and double the accumulation, and retry", group="memory"
    )
    optim: Optimizer = option(
        "adamw_torch_fused",
        "optimizer; muon learns more per step from scratch; adafactor needs far less memory for its state, sgd none",
        group="memory",
        choices=Optimizer,
    )
    lora: bool = option(
        False,
        "train a low-rank adapter (LoRA) and freeze the model itself: far less memory",
        group="memory",
        is_common=True,
    )
    lora_rank: int = option(8, "rank of the LoRA matrices", group="memory", low=1)
    lora_alpha: float = option(16, "LoRA scale: the adapter's output is multiplied by X/rank", group="memory", above=0)
    lora_dropout: float = option(0.0, "dropout probability of the adapter's input", group="memory", low=0, below=1)
    lora_targets: tuple[LoraTarget, ...] = option(
        ("c_attn",),
        "layers that get an adapter",
        group="memory",
        choices=LoraTarget,
        metavar="NAME",
        shown_default="c_attn",
    )
    no_merge: bool = option(False, "save the adapter alone, without the merged model", group="memory")
    freeze_layers: int = option(0, "freeze the embeddings and the lowest N layers", group="memory", low=0)

    from_scratch: bool = option(
        False,
        "train a new tokenizer and a new model instead of fine-tuning one",
        group="from scratch",
        is_common=True,
    )
    vocab_size: int = option(4096, "vocabulary size of the new tokenizer", group="from scratch", low=257)
    n_layer: int = option(6, "number of layers of the new model", group="from scratch", low=1)
    n_embd: int = option(256, "embedding size of the new model", group="from scratch", low=1)
    n_head: int = option(4, "number of attention heads of the new model", group="from scratch", low=1)
    n_positions: int = option(512, "context length of the new model, in tokens", group="from scratch", low=2)

    generate_samples: bool = option(
        False, "generate samples from the new model after training", group="samples", is_common=True
    )
    prompt: str = option(DEFAULT_PROMPT, "prompt of the samples", group="samples", metavar="TEXT", is_text=True)
    num_samples: int = option(3, "number of samples", group="samples", low=1)
    sample_steps: int | None = option(
        None,
        "also generate samples every N steps of training, printed and written to samples.md",
        group="samples",
        low=1,
        shown_default="off",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fp16 and self.bf16:
            raise UserError("and --bf16 contradict each other: give one of the two", "fp16")
        if self.lora and (self.from_scratch or self.freeze_layers):
            other = "from_scratch" if self.from_scratch else "freeze_layers"
            raise UserError(f"and --{other} contradict each other: give one of the two", "lora")
        self._check_resuming()
        self._check_validation()
        self._check_new_model()
        self.tries()

    def _check_resuming(self) -> None:
        if self.resume and self.overwrite:
            raise UserError("and --overwrite contradict each other: give one of the two", "resume")
        if self.resume_anyway and not self.resume:
            raise UserError("does nothing without --resume: give both", "resume_anyway")
        if self.try_ and self.resume not in (None, NEWEST):
            raise UserError(f"{self.resume}: --try resumes all its trials: give the flag without a path", "resume")
        if self.try_ and self.push_to_hub:
            raise UserError("and --try contradict each other: upload the best model afterwards", "push_to_hub")

    def _check_validation(self) -> None:
        if self.validation_split or self.validation_file:
            return
        if self.early_stopping_patience:
            raise UserError(
                f"{self.early_stopping_patience} needs a validation loss: leave out --validation_split 0",
                "early_stopping_patience",
            )
        if self.try_:
            raise UserError("needs a validation loss: leave out --validation_split 0", "try")

    def _check_new_model(self) -> None:
        if not self.from_scratch:
            return
        if self.n_embd % self.n_head:
            raise UserError(
                f"{self.n_embd} is not a multiple of --n_head {self.n_head}: change one of the two", "n_embd"
            )
        if self.block_size > self.n_positions:
            raise UserError(
                f"{self.block_size} is over the context length of the new model, {self.n_positions}: "
                "lower it, or raise --n_positions",
                "block_size",
            )

    def tries(self) -> list[TrainingOptions]:
        """Return the options of each trial of `try_`; the values of the last setting change fastest.

        Raises:
            UserError: an entry of `try_` is not a name with values, or names a setting that cannot be tried.
        """
        return [dataclasses.replace(self, try_=(), **settings) for settings in self.tried_settings()]

    def tried_settings(self) -> list[dict[str, Any]]:
        """Return the settings by which the trials of `try_` differ, in their order; none without `try_`."""
        if not self.try_:
            return []
        allowed = [name for name in TRIABLE if self.from_scratch or name not in FROM_SCRATCH_FLAGS]
        return read_trials(TrainingOptions, self.try_, allowed)


# Flags of a new model: they do nothing when an existing one is fine-tuned.
FROM_SCRATCH_FLAGS = tuple(f.name for f in dataclasses.fields(TrainingOptions) if f.metadata["group"] == "from scratch")

# Settings of the training that leave the validation text and its tokens as they are, so that losses can be compared.
TRIABLE = tuple(
    f.name
    for f in dataclasses.fields(TrainingOptions)
    if f.name == "block_size" or f.metadata["group"] in ("training", "memory", "from scratch")
    if f.name
    not in ("try_", "trainer", "from_scratch", "vocab_size", "compile", "auto_batch_size", "no_merge", "lora_targets")
)
