"""The distance from human text, by hand and against its definition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from gpt2tg.comparison.distance import SMALLEST_SCALES, HumanBaseline
from gpt2tg.comparison.metrics import TextMetrics, set_metrics, text_metrics
from gpt2tg.generation.generator import Sample


def sample(completion: str, logprob: float = -1.0, ids: Sequence[int] = (1, 2), finish: str = "length") -> Sample:
    return Sample("The", completion, 0, 0, 1, tuple(ids), finish, logprob)


def human_texts(number: int, seed: int = 0) -> list[TextMetrics]:
    draw = np.random.default_rng(seed)
    return text_metrics(
        [
            sample(" ".join(f"w{word}" for word in draw.zipf(1.4, 50) % 300), -draw.uniform(100, 200), range(50))
            for _ in range(number)
        ]
    )


def test_distance_by_hand() -> None:
    """The mean absolute difference of the metrics, each in units of its scale."""
    texts = human_texts(40)
    baseline = HumanBaseline(texts, size=40)
    human = set_metrics(texts)
    assert baseline.distance(human) == 0
    shifted = replace(human, logprob=human.logprob - 2 * baseline.scales["logprob"], loops=0.1)
    assert baseline.differences(shifted)["logprob"] == pytest.approx(-2)
    assert baseline.scales["loops"] == SMALLEST_SCALES["loops"]  # none of these human texts ends in a loop
    assert baseline.distance(shifted) == pytest.approx((2 + 0.1 / 0.02) / len(SMALLEST_SCALES))


def test_scales_are_standard_errors_of_the_metrics() -> None:
    texts = human_texts(60)
    for size in (10, 40):
        error = np.std([-text.logprob / text.tokens for text in texts]) / math.sqrt(size)
        assert HumanBaseline(texts, size, resamples=2000).scales["logprob"] == pytest.approx(error, rel=0.1)


def test_chance_distance_of_human_text() -> None:
    baseline = HumanBaseline(human_texts(100), size=100)
    assert 0.2 < baseline.chance_distance < 1.0
    other = set_metrics(human_texts(100, seed=5))
    assert baseline.distance(other) < 4 * baseline.chance_distance


def test_zipf_is_compared_with_human_sets_of_the_same_size() -> None:
    """A quarter of a text has a lower coefficient than the whole, which must not count as distance."""
    texts = human_texts(80)
    quarter = set_metrics(texts[:20])
    assert quarter.zipf < set_metrics(texts).zipf - 0.1
    assert abs(HumanBaseline(texts, size=20).differences(quarter)["zipf"]) < 3


def test_missing_metrics_do_not_count() -> None:
    found = set_metrics(text_metrics([sample("", -0.5, (0,), "eos")]))
    baseline = HumanBaseline(human_texts(10), size=1)
    assert set(baseline.differences(found)) == {"logprob", "loops", "length"}
