"""The options of an export: a model for other programs, or an adapter merged into its model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpt2tg.errors import UserError
from gpt2tg.options.fields import Options, option

ExportFormat = Literal["gguf", "ctranslate2", "safetensors"]
ExportPrecision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True)
class ExportOptions(Options):
    """What is written instead of training."""

    merge: str | None = option(
        None,
        "merge this LoRA adapter into its model, and save the whole model in --output_dir; no training",
        group="export",
        metavar="ADAPTER",
        shown_default="off",
    )
    export: ExportFormat | None = option(
        None,
        "save the model of --model_name in --output_dir for llama.cpp (gguf), CTranslate2, or transformers "
        "(safetensors); no training",
        group="export",
        choices=ExportFormat,
        shown_default="off",
    )
    precision: ExportPrecision | None = option(
        None,
        "number format of the exported weights; int8 is Q8_0 in gguf",
        group="export",
        choices=ExportPrecision,
        shown_default="fp16, with --merge fp32",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.merge is not None and self.export is not None:
            raise UserError("and --export contradict each other: --export takes an adapter as --model_name", "merge")
        if self.precision == "int8" and (self.merge is not None or self.export == "safetensors"):
            raise UserError("int8 is for --export gguf or ctranslate2: use fp16 or fp32", "precision")

    @property
    def is_asked_for(self) -> bool:
        """Whether something is to be written instead of training."""
        return self.merge is not None or self.export is not None

    @property
    def chosen_precision(self) -> ExportPrecision:
        """The precision, or the default of what is written."""
        return self.precision or ("fp32" if self.merge is not None else "fp16")
