"""What every part of gpu_check.py is given: how much to measure, where, and a file for the results."""

from __future__ import annotations

import contextlib
import json
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch


class Rows:
    """Writes measurements, one line of JSON each."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, what: str, value: float | str | None, unit: str = "", note: str = "", **more: object) -> None:
        """Write a measurement. A value of None means that it failed."""
        row = {"what": what, "value": value, "unit": unit, "note": note, **more}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Write a failure of this block as a measurement without a value, and go on."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.add(what, None, note=f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


@dataclass(frozen=True)
class Check:
    """How a part measures: where, how much, and where to the results go."""

    rows: Rows
    cache: Path
    is_small: bool
    device: str

    @property
    def precision(self) -> str:
        """The precision of generation."""
        return "fp16" if self.device == "cuda" else "fp32"

    def sized(self, full: int, small: int) -> int:
        """Return a size: the full one, or that of a rehearsal."""
        return small if self.is_small else full
