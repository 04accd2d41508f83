"""The options of a training run on its steps, its memory and its adapter."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Literal

from gpt2tg.errors import UserError
from gpt2tg.options.entries import read_settings
from gpt2tg.options.fields import Options, option
from gpt2tg.options.optimizers import BY_VALIDATION, SCHEDULE_FREE_PREFIX, UNSUITABLE, Optimizer, Scheduler

Compile = Literal["auto", "on", "off"]
# The linear layers of a GPT-2, as its checkpoints name them. Attention and MLP each have a c_proj.
LoraLayer = Literal["c_attn", "c_proj", "c_fc"]
LoraTarget = Literal[LoraLayer, "all-linear"]


@dataclass(frozen=True)
class OptimizationOptions(Options):
    """How a model is trained: steps, learning rate, precision, memory, adapter."""

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
        "linear",
        "learning rate schedule after the warm-up: linear, cosine, constant, constant_with_warmup, cosine_with_min_lr, "
        "warmup_stable_decay, or another of transformers",
        group="training",
        choices=Scheduler,
        metavar="NAME",
        lists_choices=False,
    )
    lr_scheduler_kwargs: tuple[str, ...] = option(
        (),
        "arguments of the schedule: min_lr_rate=0.1 for cosine_with_min_lr",
        group="training",
        metavar="NAME=X",
        shown_default="none",
        accepts_string=True,
    )
    warmup_steps: float = option(
        0,
        "warm-up: steps in which the learning rate rises to its peak; below 1, that share of all steps",
        group="training",
        low=0,
    )
    weight_decay: float = option(0.0, "weight decay", group="training", low=0)
    adam_beta2: float = option(
        0.999, "AdamW beta2; 0.95 suits training from scratch", group="training", above=0, below=1
    )
    max_grad_norm: float = option(1.0, "clip the gradient norm to X; 0 disables", group="training", low=0)
    dropout: float | None = option(
        None, "dropout probability", group="training", low=0, below=1, shown_default="the model's own"
    )
    unlikelihood_alpha: float = option(
        0.0,
        "unlikelihood training: the weight of a loss on repeating n-grams, so that texts loop less; 0 is off",
        group="training",
        low=0,
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
        "optimizer: muon (learns more per step from scratch), adafactor or adamw_bnb_8bit (far less memory), sgd, "
        "lion_32bit, or another of transformers",
        group="memory",
        choices=Optimizer,
        metavar="NAME",
        lists_choices=False,
    )
    lora: bool = option(
        False,
        "train a low-rank adapter (LoRA) and freeze the model itself: far less memory",
        group="memory",
        is_common=True,
    )
    lora_rank: int = option(8, "rank of the LoRA matrices", group="memory", low=1)
    lora_alpha: float = option(
        16,
        "LoRA scale: the adapter's output is multiplied by X/rank, with --use_rslora by X over the root of the rank",
        group="memory",
        above=0,
    )
    lora_dropout: float = option(0.0, "dropout probability of the adapter's input", group="memory", low=0, below=1)
    lora_targets: tuple[LoraTarget, ...] = option(
        ("c_attn",),
        "layers that get an adapter; all-linear stands for all three",
        group="memory",
        choices=LoraTarget,
        metavar="NAME",
        shown_default="c_attn",
    )
    use_rslora: bool = option(
        False, "rsLoRA: scale the adapter by the root of its rank, which suits high ranks", group="memory"
    )
    use_dora: bool = option(
        False, "DoRA: train the magnitude of the adapted weights too; better at low ranks, slower", group="memory"
    )
    load_in_4bit: bool = option(
        False,
        "QLoRA: hold the frozen weights in 4 bits; needs --lora, a CUDA GPU and the package bitsandbytes",
        group="memory",
    )
    no_merge: bool = option(False, "save the adapter alone, without the merged model", group="memory")
    freeze_layers: int = option(0, "freeze the embeddings and the lowest N layers", group="memory", low=0)

    def __post_init__(self) -> None:
        if isinstance(self.optim, str) and self.optim in UNSUITABLE:
            raise UserError(f"{self.optim} {UNSUITABLE[self.optim]}", "optim")
        super().__post_init__()
        self._check_warmup()
        self.scheduler_settings()

    def _check_warmup(self) -> None:
        steps = whole_if_possible(self.warmup_steps)
        object.__setattr__(self, "warmup_steps", steps)
        if isinstance(steps, float) and steps > 1:
            raise UserError(f"{steps} is neither a whole number of steps nor a share below 1", "warmup_steps")
        if isinstance(steps, float) and self.optim.startswith(SCHEDULE_FREE_PREFIX):
            raise UserError(f"{steps} must be a number of steps with --optim {self.optim}", "warmup_steps")

    def scheduler_settings(self) -> dict[str, bool | float | str]:
        """Return the arguments of the schedule, by name.

        Raises:
            UserError: an entry of `lr_scheduler_kwargs` is not of the form name=value, or names an argument twice.
        """
        return read_settings(self.lr_scheduler_kwargs, "lr_scheduler_kwargs", "min_lr_rate=0.1")

    @property
    def follows_validation(self) -> bool:
        """Whether the learning rate depends on the validation loss."""
        return self.lr_scheduler_type in BY_VALIDATION

    @property
    def adapted_layers(self) -> tuple[str, ...]:
        """The names of the layers that get an adapter."""
        return typing.get_args(LoraLayer) if "all-linear" in self.lora_targets else self.lora_targets


def whole_if_possible(number: float) -> float:
    """Return 100 for 100.0: a number of steps, as it is written in records; and a share as it is."""
    return int(number) if number == int(number) else number
