"""Generate texts with several strategies, measure them, and compare them with human text."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from gpt2tg.comparison.distance import HumanBaseline
from gpt2tg.comparison.memorisation import longest_copies
from gpt2tg.comparison.metrics import SetMetrics, TextMetrics, set_metrics, text_metrics
from gpt2tg.comparison.reference import HumanText
from gpt2tg.generation.generator import Generator, Sample
from gpt2tg.options import DecodingOptions

HUMAN = "human text"


@dataclass(frozen=True)
class Result:
    """The texts of one strategy, or human text, with their metrics."""

    name: str
    options: DecodingOptions | None
    """None for human text."""
    samples: tuple[Sample, ...]
    """In the order of the prompts."""
    texts: tuple[TextMetrics, ...]
    """One for each sample."""
    metrics: SetMetrics
    differences: dict[str, float] | None = None
    """Signed difference of each metric from the human one, in units of its scale; None without a reference."""
    distance: float | None = None
    """Mean of their absolute values. For human text: the distance that sets drawn from it have by chance."""


@dataclass(frozen=True)
class Comparison:
    """The results of all strategies on the same prompts."""

    prompts: tuple[str, ...]
    seed: int
    results: tuple[Result, ...]
    human: Result | None = None

    @property
    def all_results(self) -> tuple[Result, ...]:
        """The results of the strategies, and human text last if there is a reference."""
        return self.results if self.human is None else (*self.results, self.human)


@dataclass(frozen=True)
class TimedSamples:
    """The texts that a strategy generated, and the seconds this took."""

    samples: tuple[Sample, ...]
    seconds: float


def compare_strategies(
    generator: Generator,
    prompts: Sequence[str],
    strategies: Mapping[str, DecodingOptions],
    human: HumanText | None = None,
    training: str | None = None,
    batch_size: int = 8,
    show: Callable[[str, DecodingOptions, Sequence[Sample]], None] | None = None,
) -> Comparison:
    """Generate texts for the prompts with each strategy, and measure them.

    Args:
        strategies: the options of each strategy by its name; all have the same seed.
        training: the text that the model was trained on, to find copies from it.
        show: receives the texts of a strategy as soon as they are generated.

    Raises:
        UserError: a prompt and its new tokens exceed the context length.
        RunError: the model's logits are not finite, or memory ran out.
    """
    for options in strategies.values():
        for prompt in prompts:
            generator.fit(prompt, options)
    warm_up = DecodingOptions(decoding="greedy", max_new_tokens=2, overflow="slide")
    generate_samples(generator, prompts[:1], warm_up, 1)  # the first call is slower, and would distort tokens/s
    generated: dict[str, TimedSamples] = {}
    for name, options in strategies.items():
        started = time.perf_counter()
        samples = generate_samples(generator, prompts, options, batch_size)
        generated[name] = TimedSamples(samples, time.perf_counter() - started)
        if show:
            show(name, options, samples)
    return compare_texts(prompts, strategies, generated, human, training)


def generate_samples(
    generator: Generator, prompts: Sequence[str], options: DecodingOptions, batch_size: int
) -> tuple[Sample, ...]:
    """Generate the texts of all prompts, in the order of the prompts."""
    requests = [generator.fit(prompt, options, index) for index, prompt in enumerate(prompts)]
    return tuple(sample for samples in generator.generate_each(requests, options, batch_size) for sample in samples)


def compare_texts(
    prompts: Sequence[str],
    strategies: Mapping[str, DecodingOptions],
    generated: Mapping[str, TimedSamples],
    human: HumanText | None = None,
    training: str | None = None,
) -> Comparison:
    """Measure texts that are already generated.

    Args:
        generated: the texts of each strategy by its name.
        training: the text that the model was trained on, to find copies from it.
    """
    copies = _copies([*(texts.samples for texts in generated.values()), human.samples if human else ()], training)
    results = tuple(
        _measure(name, options, generated[name].samples, copied, generated[name].seconds)
        for (name, options), copied in zip(strategies.items(), copies[:-1], strict=True)
    )
    human_result = None
    if human:
        measured = _measure(HUMAN, None, human.samples, copies[-1])
        baseline = HumanBaseline(measured.texts, max(len(result.texts) for result in results))
        results = tuple(
            replace(
                result, differences=baseline.differences(result.metrics), distance=baseline.distance(result.metrics)
            )
            for result in results
        )
        human_result = replace(measured, distance=baseline.chance_distance)
    seed = next((options.seed for options in strategies.values() if options.seed is not None), 0)
    return Comparison(tuple(prompts), seed, results, human_result)


def _measure(
    name: str,
    options: DecodingOptions | None,
    samples: tuple[Sample, ...],
    copied: list[int] | None,
    seconds: float | None = None,
) -> Result:
    texts = tuple(text_metrics(samples, copied))
    return Result(name, options, samples, texts, set_metrics(texts, seconds))


def _copies(sets: Sequence[Sequence[Sample]], training: str | None) -> list[list[int] | None]:
    """Return, for each set, the lengths of the runs its texts copy; all found in one search of the training text."""
    if training is None:
        return [None] * len(sets)
    found = iter(longest_copies([sample.completion for samples in sets for sample in samples], training))
    return [[next(found) for _ in samples] for samples in sets]
