"""A clock for tests of tuning, and a text that is long enough to tune on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from conftest import FABLES

from gpt2tg.generation.generator import Generator
from gpt2tg.options import DecodingOptions
from gpt2tg.tuning import trials

# The test model is untrained, so only the length of this text matters.
TEXT = "\n".join(FABLES * 4)


class Clock:
    """A clock on which time passes only while texts are generated."""

    def __init__(self, seconds: Callable[[DecodingOptions], float] = lambda options: 1.0) -> None:
        """`seconds` is the time to generate one set of texts with some options."""
        self.now = 0.0
        self.seconds = seconds

    def monotonic(self) -> float:
        return self.now

    def replace_the_real_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        generate = trials.generate_samples

        def generate_and_wait(
            generator: Generator, prompts: Sequence[str], options: DecodingOptions, size: int
        ) -> object:
            self.now += self.seconds(options)
            return generate(generator, prompts, options, size)

        monkeypatch.setattr(trials, "time", self)
        monkeypatch.setattr(trials, "generate_samples", generate_and_wait)
