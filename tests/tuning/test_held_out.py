"""The bootstrap interval of the gain, on texts whose gain is known."""

from __future__ import annotations

import random

from gpt2tg.comparison.distance import SMALLEST_SCALES
from gpt2tg.comparison.metrics import TextMetrics, set_metrics, text_metrics
from gpt2tg.generation.generator import Sample
from gpt2tg.tuning.held_out import gain_interval


def texts_with(logprob: float, spread: float, seed: int) -> list[TextMetrics]:
    draw = random.Random(seed)
    return text_metrics(
        [Sample("", f"w{n}", n, 0, 1, (1,) * 10, "length", 10 * draw.gauss(logprob, spread)) for n in range(40)]
    )


def test_interval_contains_a_known_gain() -> None:
    """Only the log-probabilities differ: the gain is the difference of their distances over the number of metrics."""
    human = texts_with(-3.0, 0.1, 0)
    default, tuned = [[texts_with(mean, 0.1, seed) for seed in (1, 2, 3)] for mean in (-2.0, -2.9)]
    scales = {"logprob": 0.1, "length": SMALLEST_SCALES["length"]}
    low, high = gain_interval(human, default, tuned, scales)
    assert low < (1.0 - 0.1) / 0.1 / 2 < high
    assert high - low < 0.6
    assert all(set_metrics(texts).length == 10 for texts in default)


def test_interval_of_equal_settings_contains_zero() -> None:
    human = texts_with(-3.0, 0.1, 0)
    same = [texts_with(-2.8, 0.2, seed) for seed in (1, 2, 3, 4, 5)]
    other = [texts_with(-2.8, 0.2, seed) for seed in (6, 7, 8, 9, 10)]
    low, high = gain_interval(human, same, other, {"logprob": 0.1})
    assert low < 0 < high
