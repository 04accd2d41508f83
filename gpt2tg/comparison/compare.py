"""Prompts through strategies: the texts, how fast they came, and their figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from gpt2tg.comparison.figures import Figures, TextFigures, Yardstick, figures_of, text_figures
from gpt2tg.comparison.memorisation import longest_copies
from gpt2tg.comparison.reference import PROMPT_TOKENS, Piece, as_samples, pieces_of, spread
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import Generator, Sample
from gpt2tg.options import DEFAULT_MAX_LENGTH, DecodingOptions

# Of a long reference so many pieces are measured: more would change the figures by less than what they vary.
MOST_HUMAN_TEXTS = 128


@dataclass(frozen=True)
class Result:
    """The texts of one strategy, or of people, and their figures."""

    name: str
    options: DecodingOptions | None
    """None for human text."""
    samples: tuple[Sample, ...]
    """Prompt by prompt."""
    texts: tuple[TextFigures, ...]
    figures: Figures
    differences: dict[str, float] | None = None
    """How far each figure is from the human one, in units of how much that varies; None without a reference."""
    distance: float | None = None
    """The mean of their absolute values; for the human text itself, that of sets drawn from it by chance."""


@dataclass(frozen=True)
class Comparison:
    """What was compared."""

    prompts: tuple[str, ...]
    seed: int
    results: tuple[Result, ...]
    human: Result | None = None

    @property
    def all_results(self) -> tuple[Result, ...]:
        """Those of the strategies, and human text last where there is any."""
        return self.results if self.human is None else (*self.results, self.human)


@dataclass(frozen=True)
class HumanText:
    """Pieces of a reference, measured by the model; those at `prompted` gave the prompts."""

    samples: tuple[Sample, ...]
    prompts: tuple[str, ...]
    room: int
    """Tokens that follow each prompt."""


def human_text(
    generator: Generator, examples: Sequence[str], options: DecodingOptions, prompts: Sequence[str], num_prompts: int
) -> HumanText:
    """Cut human text into pieces as long as the texts of a model will be.

    Args:
        prompts: what the model will continue; where there are none, they are taken from the pieces.
        num_prompts: how many to take.

    Raises:
        UserError: the text holds no piece as long as that.
    """
    positions = generator.model.shape.n_positions
    if prompts:
        requests = [generator.fit(prompt, options) for prompt in prompts]
        prompt_tokens = round(sum(len(request.ids) for request in requests) / len(requests))
        room = max(request.max_new_tokens for request in requests)
    else:
        prompt_tokens = min(PROMPT_TOKENS, max(1, positions // 4))
        longest = options.max_length if options.max_length is not None else min(DEFAULT_MAX_LENGTH, positions)
        # Prompts are longer by what is left of their last word.
        room = options.max_new_tokens or max(1, longest - prompt_tokens - prompt_tokens // 2)
    pieces = [
        piece
        for piece in pieces_of(generator, examples, prompt_tokens, room)
        if options.overflow == "slide" or len(piece.context) + room <= positions
    ]
    if not pieces:
        raise UserError(
            f"holds no piece of {prompt_tokens} tokens and {room} that follow: give a longer text, "
            "or ask for shorter ones with --max_new_tokens, or see --examples",
            "reference",
        )
    measured = spread(pieces, max(MOST_HUMAN_TEXTS, num_prompts))
    taken: list[Piece] = [] if prompts else spread(measured, num_prompts)
    # The pieces that gave the prompts stand first, in the order of the prompts.
    ordered = [*taken, *(piece for piece in measured if piece not in taken)]
    return HumanText(
        tuple(as_samples(generator, ordered)), tuple(piece.prompt for piece in taken) or tuple(prompts), room
    )


def compare(
    generator: Generator,
    prompts: Sequence[str],
    strategies: Mapping[str, DecodingOptions],
    human: HumanText | None = None,
    training: str | None = None,
    batch_size: int = 8,
    show: Callable[[str, DecodingOptions, Sequence[Sample]], None] | None = None,
) -> Comparison:
    """Put prompts through strategies and count.

    Args:
        strategies: name and options of each; all have the same seed.
        training: the text that the model learned from.
        show: takes the texts of each strategy as soon as they are there.

    Raises:
        UserError: a prompt leaves no room.
        RunError: the model's logits are not finite, or memory ran out.
    """
    for options in strategies.values():
        for prompt in prompts:
            generator.fit(prompt, options)
    write(generator, prompts[:1], DecodingOptions(decoding="greedy", max_new_tokens=2, overflow="slide"), 1)  # warms up
    written: dict[str, tuple[tuple[Sample, ...], float]] = {}
    for name, options in strategies.items():
        started = time.perf_counter()
        samples = write(generator, prompts, options, batch_size)
        written[name] = samples, time.perf_counter() - started
        if show:
            show(name, options, samples)
    return measured(prompts, strategies, written, human, training)


def measured(
    prompts: Sequence[str],
    strategies: Mapping[str, DecodingOptions],
    written: Mapping[str, tuple[tuple[Sample, ...], float]],
    human: HumanText | None = None,
    training: str | None = None,
) -> Comparison:
    """Count in texts that are there.

    Args:
        written: for each strategy its texts, and the seconds that they took.
    """
    everything = [*(samples for samples, _ in written.values()), human.samples if human else ()]
    copies = _copies(everything, training)
    found = [
        _result(name, options, samples, copied, seconds)
        for (name, options), (samples, seconds), copied in zip(
            strategies.items(), written.values(), copies, strict=False
        )
    ]
    human_result = None
    if human:
        human_result = _result("human text", None, human.samples, copies[-1])
        yardstick = Yardstick(human_result.texts, max(len(result.texts) for result in found))
        found = [
            replace(
                result, differences=yardstick.differences(result.figures), distance=yardstick.distance(result.figures)
            )
            for result in found
        ]
        human_result = replace(human_result, distance=yardstick.own_distance)
    seed = next((options.seed for options in strategies.values() if options.seed is not None), 0)
    return Comparison(tuple(prompts), seed, tuple(found), human_result)


def write(
    generator: Generator, prompts: Sequence[str], options: DecodingOptions, batch_size: int
) -> tuple[Sample, ...]:
    """The texts of all prompts, prompt by prompt."""
    requests = [generator.fit(prompt, options, index) for index, prompt in enumerate(prompts)]
    return tuple(sample for samples in generator.generate_each(requests, options, batch_size) for sample in samples)


def _result(
    name: str,
    options: DecodingOptions | None,
    samples: tuple[Sample, ...],
    copied: list[int] | None,
    seconds: float | None = None,
) -> Result:
    texts = tuple(text_figures(samples, copied))
    return Result(name, options, samples, texts, figures_of(texts, seconds))


def _copies(sets: Sequence[Sequence[Sample]], training: str | None) -> list[list[int] | None]:
    """For each set, what its texts copy from the training text, found in one walk through it."""
    if training is None:
        return [None] * len(sets)
    found = iter(longest_copies([sample.completion for samples in sets for sample in samples], training))
    return [[next(found) for _ in samples] for samples in sets]
