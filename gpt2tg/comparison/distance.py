"""The distance between the metrics of two sets of texts, in units of how much human text varies."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from gpt2tg.comparison.metrics import SetMetrics, TextMetrics, mean_of_known, set_metrics, zipf_coefficient

# The metrics that the distance is made of, each with the smallest scale it may have. The limit keeps a difference that
# nobody would notice from counting much where human texts hardly differ.
SMALLEST_SCALES = {
    "logprob": 0.05,
    "distinct_1": 0.01,
    "distinct_2": 0.01,
    "distinct_3": 0.01,
    "repetition": 0.01,
    "loops": 0.02,
    "self_bleu": 0.01,
    "zipf": 0.02,
    "length": 1.0,
}

# Sets drawn for a scale, and for the Zipf coefficient of small sets.
BASELINE_RESAMPLES, ZIPF_RESAMPLES = 200, 50


def differences(found: SetMetrics, human: SetMetrics, scales: Mapping[str, float]) -> dict[str, float]:
    """Return the signed difference of each metric that both sets have, in units of its scale."""
    return {
        name: (own - other) / scale
        for name, scale in scales.items()
        if (own := getattr(found, name)) is not None and (other := getattr(human, name)) is not None
    }


def distance(found: SetMetrics, human: SetMetrics, scales: Mapping[str, float]) -> float:
    """Return the mean absolute difference; infinite if the sets have no metric in common."""
    values = differences(found, human, scales).values()
    return statistics.fmean(map(abs, values)) if values else math.inf


class HumanBaseline:
    """The metrics of human text and their scales, from which the distance of other texts is measured.

    The distance of a set is the mean, over the metrics in `SMALLEST_SCALES`, of its absolute difference from the human
    metric in units of a scale. The scale is the standard deviation of the metric over sets of `size` human texts,
    drawn with replacement.
    """

    def __init__(self, texts: Sequence[TextMetrics], size: int, resamples: int = BASELINE_RESAMPLES) -> None:
        draw = random.Random(0)
        sets = [set_metrics(draw.choices(texts, k=size)) for _ in range(resamples)]
        self.metrics = set_metrics(texts)
        self.scales = {name: max(_deviation(sets, name), smallest) for name, smallest in SMALLEST_SCALES.items()}
        self._texts = texts
        self._zipf: dict[int, float | None] = {}
        self.chance_distance = statistics.fmean(self.distance(found) for found in sets)
        """The mean distance of those sets: human text is as far as this from itself by chance alone."""

    def differences(self, found: SetMetrics) -> dict[str, float]:
        """Return the signed difference of each metric from the human one, in units of its scale."""
        return differences(found, self._metrics_for(found.texts), self.scales)

    def distance(self, found: SetMetrics) -> float:
        """Return the mean absolute difference from human text; infinite if `found` has none of the metrics."""
        return distance(found, self._metrics_for(found.texts), self.scales)

    def _metrics_for(self, size: int) -> SetMetrics:
        """Return the human metrics for a set of `size` texts: the Zipf coefficient grows with the amount of text."""
        if size >= len(self._texts):
            return self.metrics
        if size not in self._zipf:
            draw = random.Random(0)
            sets = [draw.sample(self._texts, size) for _ in range(ZIPF_RESAMPLES)]
            self._zipf[size] = mean_of_known([zipf_coefficient([text.words for text in texts]) for texts in sets])
        return replace(self.metrics, zipf=self._zipf[size])


def _deviation(sets: Sequence[SetMetrics], name: str) -> float:
    """Return the standard deviation of a metric over sets of texts; 0 if none of them has it."""
    values: list[float] = [value for found in sets if (value := getattr(found, name)) is not None]
    return statistics.pstdev(values or [0.0])
