"""The search space of tuning: which settings, in which ranges."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gpt2tg.options import DecodingOptions

if TYPE_CHECKING:
    from optuna import Trial  # takes a second to import, which the report need not wait for

# The grid that comes first.
TEMPERATURES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)
TOP_PS = (0.7, 0.8, 0.9, 0.95, 1.0)

# Categories, for settings whose useful values are far apart; 0 is off.
TOP_KS = (20, 50, 100, 200, 0)
NO_REPEAT_NGRAMS = (3, 4, 0)


@dataclass(frozen=True)
class SearchedSettings:
    """One point of the search space. At its default each setting changes nothing, unlike in `DecodingOptions`."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0

    @classmethod
    def of(cls, options: DecodingOptions) -> SearchedSettings:
        """Return the point that corresponds to decoding options."""
        return cls(
            temperature=options.temperature,
            top_p=1.0 if options.effective_top_p is None else options.effective_top_p,
            top_k=options.effective_top_k or 0,
            min_p=options.min_p or 0.0,
            repetition_penalty=options.repetition_penalty,
            no_repeat_ngram=options.no_repeat_ngram,
        )

    @classmethod
    def suggested_by(cls, trial: Trial) -> SearchedSettings:
        """Ask an Optuna trial for a point."""
        return cls(
            temperature=trial.suggest_float("temperature", 0.5, 1.5, step=0.05),
            top_p=trial.suggest_float("top_p", 0.5, 1.0, step=0.05),
            top_k=trial.suggest_categorical("top_k", TOP_KS),
            min_p=trial.suggest_float("min_p", 0.0, 0.1, step=0.01),
            repetition_penalty=trial.suggest_float("repetition_penalty", 1.0, 1.3, step=0.02),
            no_repeat_ngram=trial.suggest_categorical("no_repeat_ngram", NO_REPEAT_NGRAMS),
        )

    def apply_to(self, base: DecodingOptions) -> DecodingOptions:
        """Return the options with these settings, rounded to two decimals."""
        return replace(
            base,
            temperature=round(self.temperature, 2),
            top_p=round(self.top_p, 2),
            top_k=self.top_k or None,
            min_p=round(self.min_p, 2) or None,
            repetition_penalty=round(self.repetition_penalty, 2),
            no_repeat_ngram=self.no_repeat_ngram,
        )

    def as_dict(self) -> dict[str, float]:
        """Return the settings by name."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return " ".join(f"{name}={value:g}" for name, value in self.as_dict().items())


OFF = SearchedSettings().as_dict()
SEARCHED = tuple(OFF)


def grid_points() -> list[SearchedSettings]:
    """Return all pairs of temperature and top-p, with all other settings off."""
    return [SearchedSettings(temperature=temperature, top_p=top_p) for temperature in TEMPERATURES for top_p in TOP_PS]


def shuffled_grid(seed: int) -> Iterator[SearchedSettings]:
    """Return the grid in random order, so that it is evenly covered however early the search stops."""
    points = grid_points()
    random.Random(seed).shuffle(points)
    return iter(points)
