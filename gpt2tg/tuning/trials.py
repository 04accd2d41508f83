"""Trials of decoding settings: generate, measure the distance from human text, keep to a time budget."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field, replace

from gpt2tg.comparison.distance import BASELINE_RESAMPLES, HumanBaseline
from gpt2tg.comparison.metrics import set_metrics, text_metrics
from gpt2tg.comparison.reference import HumanText
from gpt2tg.comparison.results import TimedSamples, generate_samples
from gpt2tg.generation.generator import Generator
from gpt2tg.options import LARGEST_SEED, DecodingOptions

# The best settings of the search are tried again with up to this many seeds each, since the best of many trials may be
# the best by luck.
FINALISTS = 4
FINALIST_SEEDS = 3

# Seeds of the check on held-out text. They begin far from those of the search.
CHECK_SEEDS = 5
MIN_CHECK_SEEDS = 2
FIRST_CHECK_SEED = 1_000_000

# Bootstrap resamples for the confidence interval of the gain.
GAIN_RESAMPLES = 400

# Share of the budget reserved for finalists and check, if the shortest check does not need more.
MAX_RESERVE = 0.5


class Budget:
    """A time budget in seconds that starts to run when it is made."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._started = time.monotonic()

    @property
    def used(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    @property
    def left(self) -> float:
        """Seconds left; negative once the budget is overrun."""
        return self.seconds - self.used


@dataclass
class Trials:
    """The settings tried so far on some human text, with their distances and their times."""

    generator: Generator
    base: DecodingOptions
    """The default settings."""
    human: HumanText
    batch_size: int
    baseline: HumanBaseline = field(init=False)
    distances: dict[DecodingOptions, list[float]] = field(default_factory=dict)
    """By settings, the distance of each of their trials."""
    seconds: dict[DecodingOptions, float] = field(default_factory=dict)
    """By settings, the duration of their last trial."""
    baseline_seconds: float = field(init=False)
    """Time to compute the baseline, from which the time of the bootstrap is estimated."""

    def __post_init__(self) -> None:
        started = time.monotonic()
        self.baseline = HumanBaseline(text_metrics(self.human.samples), len(self.human.samples))
        self.baseline_seconds = time.monotonic() - started

    def generate(self, options: DecodingOptions, seed: int) -> TimedSamples:
        """Generate a text for each prompt."""
        started = time.monotonic()
        seeded = replace(options, seed=seed % (LARGEST_SEED + 1))
        samples = generate_samples(self.generator, self.human.prompts, seeded, self.batch_size)
        return TimedSamples(samples, time.monotonic() - started)

    def run(self, options: DecodingOptions, seed: int) -> float:
        """Try settings, and return the distance of their texts. Settings tried again get the next seed."""
        started = time.monotonic()
        earlier = self.distances.setdefault(options, [])
        samples = self.generate(options, seed + len(earlier)).samples
        distance = self.baseline.distance(set_metrics(text_metrics(samples)))
        earlier.append(distance)
        self.seconds[options] = time.monotonic() - started
        return distance

    def mean_distance(self, options: DecodingOptions) -> float:
        """Return the mean distance over the trials of some settings."""
        return statistics.fmean(self.distances[options])

    def ranked(self) -> list[DecodingOptions]:
        """Return the settings that were tried, the closest to human text first."""
        return sorted(self.distances, key=self.mean_distance)

    def trial_seconds(self) -> float:
        """Return the median duration of a trial, which ignores moments in which the machine was busy."""
        return statistics.median(self.seconds.values())

    def check_seconds(self, seeds: int) -> float:
        """Estimate the time to check the best settings against the default ones on held-out text."""
        default = next(iter(self.seconds.values()))  # the default settings are tried first
        return seeds * (default + self.seconds[self.ranked()[0]]) + self.statistics_seconds(seeds)

    def statistics_seconds(self, seeds: int) -> float:
        """Estimate the time for the baseline and the bootstrap of a check."""
        return self.baseline_seconds * (1 + GAIN_RESAMPLES * (1 + 2 * seeds) / BASELINE_RESAMPLES)

    def reserved_seconds(self, budget: float) -> float:
        """Return the time that the search must leave for the finalists and the check."""
        finalists = FINALISTS * (FINALIST_SEEDS - 1) * self.trial_seconds()
        wanted = finalists + self.check_seconds(CHECK_SEEDS)
        return max(min(wanted, budget * MAX_RESERVE), self.check_seconds(MIN_CHECK_SEEDS))
