"""Which model to use, on which device, in which precision."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Literal

from gpt2tg.errors import UserError
from gpt2tg.options.fields import Options, option

# The model that is part of the package.
BUNDLED_MODEL = "gpt2-tiny"
# The models of the Hugging Face hub that the help and the session's completion name.
HUB_MODELS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")

# A CUDA device may also have a number, as in cuda:1.
DeviceKind = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "fp16", "int8"]
BestOrLast = Literal["best", "last"]


@dataclass(frozen=True)
class ModelNameOptions(Options):
    """A model by name."""

    model_name: str = option(
        "gpt2",
        f"the model: {', '.join(HUB_MODELS)}, another GPT-2 of the Hugging Face hub, a directory, or the bundled "
        f"{BUNDLED_MODEL}",
        group="model",
        metavar="NAME",
        is_common=True,
    )


@dataclass(frozen=True)
class ModelPathOptions(Options):
    """A model by the directory that a training run wrote."""

    model_path: str | None = option(
        None,
        "directory of a fine-tuned model, or one of its checkpoint-N; the name of a model works too",
        group="model",
        metavar="DIR",
        is_common=True,
        is_required=True,
    )


@dataclass(frozen=True)
class RevisionOptions(Options):
    """A version of a model on the hub."""

    revision: str | None = option(
        None,
        "version of a model of the Hugging Face hub: a branch, a tag or a commit",
        group="model",
        metavar="NAME",
        shown_default="main",
    )


@dataclass(frozen=True)
class AdapterOptions(Options):
    """Adapters for the model."""

    adapter: tuple[str, ...] = option(
        (),
        "LoRA adapters to apply to the model, one after another: directories, or names on the hub",
        group="model",
        metavar="DIR",
        shown_default="none",
        accepts_string=True,
    )


@dataclass(frozen=True)
class DraftOptions(Options):
    """A second model that speeds the first one up."""

    draft_model: str | None = option(
        None,
        "speculative decoding: a smaller model with the same tokenizer guesses tokens, and the model checks several in "
        "one forward pass; changes the speed, not the text",
        group="model",
        metavar="NAME",
        shown_default="off",
    )


@dataclass(frozen=True)
class CheckpointOptions(Options):
    """One of the checkpoints of a training run."""

    checkpoint: str | None = option(
        None,
        "which checkpoint of a training run to use: best (lowest validation loss), last, or a step",
        group="model",
        metavar="best|last|STEP",
        shown_default="the model in the directory itself",
        is_common=True,
    )
    list: bool = option(False, "print the checkpoints of the run's directory and exit", group="model")

    def __post_init__(self) -> None:
        super().__post_init__()
        which = self.checkpoint
        if which is not None and which not in typing.get_args(BestOrLast) and not which.isdecimal():
            raise UserError(f"{which} is not a checkpoint: give best, last or the number of a step", "checkpoint")


@dataclass(frozen=True)
class DeviceOptions(Options):
    """The device that computes."""

    device: str = option(
        "auto", "the device that computes; auto is a GPU if there is one", group="model", metavar="auto|cpu|cuda|mps"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        kind, _, index = self.device.partition(":")
        if kind not in typing.get_args(DeviceKind) or (index and not index.isdigit()):
            raise UserError(f"{self.device} is not a device: use auto, cpu, cuda, cuda:N or mps", "device")


@dataclass(frozen=True)
class PrecisionOptions(Options):
    """The number format of the weights while generating."""

    precision: Precision = option(
        "auto",
        "number format of the weights: fewer bits use less memory and are mostly faster, fp32 is exact; "
        "auto is fp16 on a CUDA GPU, else fp32",
        group="model",
        choices=Precision,
    )
