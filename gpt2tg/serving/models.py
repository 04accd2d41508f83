"""The model that is served, and those that may take its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpt2tg.generation.generator import Generator


@dataclass(frozen=True)
class ServedModel:
    """A loaded model under its name."""

    name: str
    generator: Generator
    given: Mapping[str, Any] = field(default_factory=dict)
    """The decoding options of the command line."""
    tuned: Mapping[str, Any] = field(default_factory=dict)
    """The tuned settings of the checkpoint that apply beside them."""

    @property
    def defaults(self) -> dict[str, Any]:
        """The decoding options for what a request leaves out."""
        return {**self.tuned, **self.given}


class Models:
    """The model that answers requests now."""

    def __init__(self, first: ServedModel) -> None:
        self.current = first
