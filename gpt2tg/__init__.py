"""gpt2tg: fine-tune GPT-2 on your own text and generate text from it.

Public names are loaded when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

# Public name -> the module it lives in.
_HOMES = {
    "DecodingOptions": "gpt2tg.options",
    "TrainingOptions": "gpt2tg.options",
    "UserError": "gpt2tg.errors",
    "RunError": "gpt2tg.errors",
    "Generator": "gpt2tg.generation.generator",
    "Sample": "gpt2tg.generation.generator",
    "load": "gpt2tg.generation.generator",
    "finetune": "gpt2tg.training.finetune",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gpt2tg' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
