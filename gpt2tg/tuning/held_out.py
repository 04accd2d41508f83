"""Check tuned settings against the default ones on held-out text, with a bootstrap interval of the gain."""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gpt2tg.comparison.distance import distance
from gpt2tg.comparison.metrics import TextMetrics, set_metrics, text_metrics
from gpt2tg.comparison.reference import HumanText
from gpt2tg.comparison.results import Comparison, TimedSamples, compare_texts
from gpt2tg.generation.generator import Generator
from gpt2tg.options import LARGEST_SEED, DecodingOptions
from gpt2tg.tuning.trials import CHECK_SEEDS, GAIN_RESAMPLES, MIN_CHECK_SEEDS, Budget, Trials


@dataclass(frozen=True)
class CheckedSettings:
    """Settings with their distances from held-out text."""

    name: str
    options: DecodingOptions
    distances: tuple[float, ...]
    """One for each seed."""

    @property
    def mean(self) -> float:
        """Mean distance over the seeds."""
        return statistics.fmean(self.distances)

    @property
    def deviation(self) -> float:
        """Standard deviation of the distance over the seeds."""
        return statistics.stdev(self.distances)


@dataclass(frozen=True)
class HeldOutCheck:
    """Default and tuned settings on held-out text."""

    default: CheckedSettings
    tuned: CheckedSettings
    gain: float
    """Distance of the default settings minus distance of the tuned ones: positive if tuning helped."""
    interval: tuple[float, float]
    """95 % bootstrap interval of the gain, over prompts and seeds."""
    human_distance: float
    """The distance that human text has from itself by chance."""
    comparison: Comparison
    """Both settings with the first seed."""

    @property
    def is_clear(self) -> bool:
        """Whether the whole interval is above zero."""
        return self.interval[0] > 0


def check_on_held_out(
    generator: Generator,
    human: HumanText,
    default: DecodingOptions,
    tuned: DecodingOptions,
    batch_size: int,
    seed: int,
    budget: Budget,
) -> HeldOutCheck:
    """Measure the gain of tuned settings over default ones on human text that the search has not seen.

    Args:
        seed: the first of up to five seeds, which the search must not have used.
        budget: two seeds are used even if it does not allow them.
    """
    trials = Trials(generator, default, human, batch_size)
    both = {"default": default, "tuned": tuned}
    generated = _generate_while_time_is_left(trials, both, seed, budget)
    sets = {name: [text_metrics(texts.samples) for texts in by_seed] for name, by_seed in generated.items()}
    checked = {
        name: CheckedSettings(
            name, options, tuple(trials.baseline.distance(set_metrics(texts)) for texts in sets[name])
        )
        for name, options in both.items()
    }
    seeded = {name: replace(options, seed=seed % (LARGEST_SEED + 1)) for name, options in both.items()}
    first = {name: by_seed[0] for name, by_seed in generated.items()}
    human_metrics = text_metrics(human.samples)
    return HeldOutCheck(
        default=checked["default"],
        tuned=checked["tuned"],
        gain=checked["default"].mean - checked["tuned"].mean,
        interval=gain_interval(human_metrics, sets["default"], sets["tuned"], trials.baseline.scales),
        human_distance=trials.baseline.chance_distance,
        comparison=compare_texts(human.prompts, seeded, first, human),
    )


def _generate_while_time_is_left(
    trials: Trials, both: Mapping[str, DecodingOptions], seed: int, budget: Budget
) -> dict[str, list[TimedSamples]]:
    """Generate texts with both settings, seed by seed, and leave time for the statistics."""
    generated: dict[str, list[TimedSamples]] = {name: [] for name in both}
    for number in range(CHECK_SEEDS):
        last_round = sum(by_seed[-1].seconds for by_seed in generated.values() if by_seed)
        if number >= MIN_CHECK_SEEDS and budget.left < last_round + trials.statistics_seconds(number + 1):
            break
        for name, options in both.items():
            generated[name].append(trials.generate(options, seed + number))
    return generated


def gain_interval(
    human: Sequence[TextMetrics],
    default: Sequence[Sequence[TextMetrics]],
    tuned: Sequence[Sequence[TextMetrics]],
    scales: Mapping[str, float],
    resamples: int = GAIN_RESAMPLES,
) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the gain: mean default distance minus mean tuned distance.

    Prompts and seeds are resampled together, the same ones for both settings.

    Args:
        human: one text for each prompt.
        default: for each seed, one text for each prompt.
        tuned: the same for the tuned settings.
        scales: the unit of each metric's difference.
    """
    draw = random.Random(0)
    gains = []
    for _ in range(resamples):
        prompts = draw.choices(range(len(human)), k=len(human))
        seeds = draw.choices(range(len(default)), k=len(default))
        human_metrics = set_metrics([human[prompt] for prompt in prompts])
        default_distance, tuned_distance = (
            statistics.fmean(
                distance(set_metrics([sets[seed][prompt] for prompt in prompts]), human_metrics, scales)
                for seed in seeds
            )
            for sets in (default, tuned)
        )
        gains.append(default_distance - tuned_distance)
    gains.sort()
    return gains[round(0.025 * (resamples - 1))], gains[round(0.975 * (resamples - 1))]
