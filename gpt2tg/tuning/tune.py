"""The search for the settings whose texts are nearest to human text.

Human text is cut into pieces, every second of which is searched with and the others are kept for the end. The model
writes to the beginnings of the pieces, and what it writes is measured by `figures.distance` from what people wrote
there. First a grid of temperature and top-p is tried, then Optuna's tree-structured Parzen estimator (Bergstra et al.
2011) looks on in all settings. The best few are tried again with other seeds, since among many tries one is the best
by luck; the best of these is held against the default on the pieces that were kept, with seeds of their own. All of
this shares one budget of time: what the end needs, by the speed seen, is kept for it.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gpt2tg.comparison.compare import Comparison, HumanText, human_text, measured, write
from gpt2tg.comparison.figures import TextFigures, Yardstick, distance, figures_of, text_figures
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import Generator, Sample
from gpt2tg.options import LARGEST_SEED, DecodingOptions

if TYPE_CHECKING:
    from optuna import Trial

# What is searched; a filter at its last value here does nothing.
TEMPERATURES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)
TOP_PS = (0.7, 0.8, 0.9, 0.95, 1.0)
TOP_KS = (20, 50, 100, 200, 0)
NO_REPEAT_NGRAMS = (3, 4, 0)

# The value at which each of the searched settings does nothing.
OFF = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "no_repeat_ngram": 0}
SEARCHED = tuple(OFF)

# The grid may take so much of the time, and what follows the search be kept so much of it, if less than two seeds
# of the end do not need more.
SHARE_OF_THE_GRID = 0.3
LARGEST_RESERVE = 0.5

# Of fewer tries than these little comes: the person is told how to get more.
FEW_TRIES = 10

# The settings that are tried again, and the seeds for that and for the end.
FINALISTS = 4
SEEDS_OF_FINALISTS = 3
SEEDS_OF_THE_END = 5
FEWEST_SEEDS_OF_THE_END = 2
FIRST_SEED_OF_THE_END = 1_000_000

# Pieces of human text that a search needs, half of them for the end.
FEWEST_PIECES = 16

RESAMPLES, RESAMPLES_OF_A_YARDSTICK = 400, 200


@dataclass(frozen=True)
class Standing:
    """How near settings come on the pieces that were kept."""

    name: str
    options: DecodingOptions
    distances: tuple[float, ...]
    """One for each seed."""

    @property
    def mean(self) -> float:
        """Mean distance over the seeds."""
        return statistics.fmean(self.distances)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds."""
        return statistics.stdev(self.distances)


@dataclass(frozen=True)
class HeldOut:
    """Two settings on human text that neither was chosen by."""

    default: Standing
    tuned: Standing
    gain: float
    """By how much the tuned settings are nearer than the default ones."""
    interval: tuple[float, float]
    """95 % bootstrap interval of the gain, over pieces and seeds."""
    human_distance: float
    """How far human text is from itself, by chance."""
    comparison: Comparison
    """Both settings with the first of the seeds."""

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval[0] > 0


@dataclass(frozen=True)
class Tuning:
    """What a search found."""

    end: HeldOut
    tried: int
    seconds: float
    """What the search took, the end not counted."""
    cells: dict[tuple[float, float], float]
    """Distance by temperature and top-p, all else at its default."""


class _Clock:
    """A budget of seconds, which runs."""

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self._started = time.monotonic()

    @property
    def used(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._started

    @property
    def left(self) -> float:
        """Seconds until the budget is used up; below 0 it is overdrawn."""
        return self.budget - self.used


@dataclass
class _Search:
    """What was tried so far."""

    generator: Generator
    base: DecodingOptions
    human: HumanText
    batch_size: int
    yardstick: Yardstick = field(init=False)
    values: dict[DecodingOptions, list[float]] = field(default_factory=dict)
    seconds: dict[DecodingOptions, float] = field(default_factory=dict)
    """What the last try of each took."""
    statistics_seconds: float = field(init=False)
    """What it takes to draw human text again and count, 200 times."""

    def __post_init__(self) -> None:
        started = time.monotonic()
        self.yardstick = Yardstick(text_figures(self.human.samples), len(self.human.samples))
        self.statistics_seconds = time.monotonic() - started

    def texts(self, options: DecodingOptions, seed: int) -> tuple[Sample, ...]:
        """What the model writes with these settings."""
        seeded = replace(options, seed=seed % (LARGEST_SEED + 1))
        return write(self.generator, self.human.prompts, seeded, self.batch_size)

    def try_once(self, options: DecodingOptions, seed: int) -> float:
        """The distance of one try; settings that come again get another seed."""
        started = time.monotonic()
        before = self.values.setdefault(options, [])
        value = self.yardstick.distance(figures_of(text_figures(self.texts(options, seed + len(before)))))
        before.append(value)
        self.seconds[options] = time.monotonic() - started
        return value

    def nearest(self) -> list[DecodingOptions]:
        """What was tried, the nearest first."""
        return sorted(self.values, key=self.mean)

    def seconds_of_a_try(self) -> float:
        """The median so far: a machine may have other work for a while."""
        return statistics.median(self.seconds.values())

    def seconds_of_the_end(self, seeds: int) -> float:
        """What it will take, by the speed seen, to hold the nearest settings against the default ones."""
        default = next(iter(self.seconds.values()))
        return seeds * (default + self.seconds[self.nearest()[0]]) + self.seconds_of_statistics(seeds)

    def seconds_of_statistics(self, seeds: int) -> float:
        """What a yardstick for the end and the interval will take."""
        return self.statistics_seconds * (1 + RESAMPLES * (1 + 2 * seeds) / RESAMPLES_OF_A_YARDSTICK)

    def reserve(self, budget: float) -> float:
        """Seconds that the search leaves to what follows it."""
        again = FINALISTS * (SEEDS_OF_FINALISTS - 1) * self.seconds_of_a_try()
        wanted = again + self.seconds_of_the_end(SEEDS_OF_THE_END)
        return max(min(wanted, budget * LARGEST_RESERVE), self.seconds_of_the_end(FEWEST_SEEDS_OF_THE_END))

    def mean(self, options: DecodingOptions) -> float:
        return statistics.fmean(self.values[options])


def tune(
    generator: Generator,
    examples: Sequence[str],
    base: DecodingOptions,
    num_prompts: int,
    budget: float,
    batch_size: int,
    say: Callable[[str], None],
) -> Tuning:
    """Search settings of top_p for a model and human text.

    Args:
        base: what is not searched: the seed, the length, stop strings and the like. What is searched must be at its
            default there: that is what the settings found are compared with.
        num_prompts: most pieces of human text to use.
        budget: seconds for all of it. Where they are not enough for one try beside the default settings, and for two
            seeds at the end, it takes longer.
        say: takes a line for each settings that are nearer than all before, and on how the time is spent.

    Raises:
        UserError: the text is too short.
    """
    clock = _Clock(budget)
    whole = human_text(generator, examples, base, (), num_prompts)
    pieces = len(whole.prompts)
    if pieces < FEWEST_PIECES:
        raise UserError(
            f"holds only {pieces} pieces of text to write after, where a search needs {FEWEST_PIECES}: give a longer "
            "text, or ask for shorter ones with --max_new_tokens, or see --examples and --num_prompts",
            "reference",
        )
    base = replace(base, max_length=None, max_new_tokens=whole.room, num_sequences=1)
    seed = base.seed or 0
    searched, kept = _halves(whole)
    search = _Search(generator, base, searched, batch_size)
    _look_on(search, clock, seed, say)
    tuned = _best(search, clock, seed)
    seconds = clock.used
    say(f"{len(search.values)} settings tried in {seconds:.0f} s; now the kept half of the text, with other seeds")
    end = held_out(generator, kept, base, tuned, batch_size, seed + FIRST_SEED_OF_THE_END, clock)
    say(_time_in_words(clock))
    return Tuning(end, len(search.values), seconds, _cells(search))


def _time_in_words(clock: _Clock) -> str:
    if clock.left >= 0:
        return f"done in {clock.used:.0f} s, {clock.left:.0f} s before the budget was out"
    return f"done in {clock.used:.0f} s, {-clock.left:.0f} s over the budget"


def _halves(whole: HumanText) -> tuple[HumanText, HumanText]:
    """Every second piece, and the others."""
    count = len(whole.prompts)
    return tuple(  # type: ignore[return-value]
        HumanText(whole.samples[first:count:2], whole.prompts[first::2], whole.room) for first in (0, 1)
    )


def _look_on(search: _Search, clock: _Clock, seed: int, say: Callable[[str], None]) -> None:
    """Try settings until only the time is left that the end needs."""
    import optuna  # a second, which the report of a comparison need not wait for

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    grid = _grid(seed)
    study.enqueue_trial(_parameters(search.base))
    nearest = float("inf")
    while len(search.values) < 2 or clock.left - search.seconds_of_a_try() >= search.reserve(clock.budget):
        if clock.used < clock.budget * SHARE_OF_THE_GRID and (point := next(grid, None)):
            study.enqueue_trial(point)
        trial = study.ask()
        options = _with(search.base, _suggested(trial))
        value = search.try_once(options, seed)
        study.tell(trial, value)
        if value < nearest:
            nearest = value
            say(f"{len(search.values):>4}  {clock.used:4.0f} s  distance {value:.2f}  {settings(options)}")
        if len(search.seconds) == 1 and (advice := _advice(search, clock)):
            say(advice)


def _advice(search: _Search, clock: _Clock) -> str:
    """What to do where there is time for few tries only; empty where there is enough."""
    a_try = search.seconds_of_a_try()
    tries = 1 + max(1, int((clock.left - search.reserve(clock.budget)) / a_try))
    if tries >= FEW_TRIES:
        return ""
    return (
        f"a try takes {a_try:.1f} s: there is time for about {tries}; a longer --budget gives more, "
        "and fewer --num_prompts or --max_new_tokens make them shorter"
    )


def _grid(seed: int) -> Iterator[dict[str, Any]]:
    """Temperature and top-p, all else off, in an order that covers the whole evenly wherever the time ends."""
    points = [(temperature, top_p) for temperature in TEMPERATURES for top_p in TOP_PS]
    random.Random(seed).shuffle(points)
    for temperature, top_p in points:
        yield _parameters(DecodingOptions(temperature=temperature, top_p=top_p))


def _parameters(options: DecodingOptions) -> dict[str, Any]:
    """Settings as the search names them, where every filter has a number."""
    return {
        "temperature": options.temperature,
        "top_p": options.effective_top_p,
        "top_k": options.effective_top_k or 0,
        "min_p": options.min_p or 0.0,
        "repetition_penalty": options.repetition_penalty,
        "no_repeat_ngram": options.no_repeat_ngram,
    }


def _suggested(trial: Trial) -> dict[str, Any]:
    return {
        "temperature": trial.suggest_float("temperature", 0.5, 1.5, step=0.05),
        "top_p": trial.suggest_float("top_p", 0.5, 1.0, step=0.05),
        "top_k": trial.suggest_categorical("top_k", TOP_KS),
        "min_p": trial.suggest_float("min_p", 0.0, 0.1, step=0.01),
        "repetition_penalty": trial.suggest_float("repetition_penalty", 1.0, 1.3, step=0.02),
        "no_repeat_ngram": trial.suggest_categorical("no_repeat_ngram", NO_REPEAT_NGRAMS),
    }


def _with(base: DecodingOptions, parameters: dict[str, Any]) -> DecodingOptions:
    """The options with settings as the search names them."""
    plain = {name: round(value, 2) if isinstance(value, float) else value for name, value in parameters.items()}
    return replace(base, **{**plain, "top_k": plain["top_k"] or None, "min_p": plain["min_p"] or None})


def _best(search: _Search, clock: _Clock, seed: int) -> DecodingOptions:
    """The nearest settings, after the best few were tried with more seeds, as far as the time allows."""
    finalists = search.nearest()[:FINALISTS]
    for seeds in range(2, SEEDS_OF_FINALISTS + 1):
        for options in finalists:
            is_time = clock.left - search.seconds[options] >= search.seconds_of_the_end(SEEDS_OF_THE_END)
            if is_time and len(search.values[options]) < seeds:
                search.try_once(options, seed)
    tried_again = [options for options in finalists if len(search.values[options]) > 1]
    return min(tried_again or finalists, key=search.mean)


def held_out(
    generator: Generator,
    human: HumanText,
    default: DecodingOptions,
    tuned: DecodingOptions,
    batch_size: int,
    seed: int,
    clock: _Clock,
) -> HeldOut:
    """Hold tuned settings against default ones on human text that the search has not seen.

    Args:
        seed: the first of up to five that must not be those of the search.
        clock: how much time there is; two seeds are always tried.
    """
    end = _Search(generator, default, human, batch_size)
    both = {"default": default, "tuned": tuned}
    written: dict[str, list[tuple[Sample, ...]]] = {name: [] for name in both}
    took: dict[str, list[float]] = {name: [] for name in both}
    for number in range(SEEDS_OF_THE_END):
        another = sum(seconds[-1] for seconds in took.values() if seconds) + end.seconds_of_statistics(number + 1)
        if number >= FEWEST_SEEDS_OF_THE_END and clock.left < another:
            break
        for name, options in both.items():
            started = time.monotonic()
            written[name].append(end.texts(options, seed + number))
            took[name].append(time.monotonic() - started)
    sets = {name: [text_figures(samples) for samples in all_samples] for name, all_samples in written.items()}
    standings = {
        name: Standing(name, options, tuple(end.yardstick.distance(figures_of(texts)) for texts in sets[name]))
        for name, options in both.items()
    }
    seeded = {name: replace(options, seed=seed % (LARGEST_SEED + 1)) for name, options in both.items()}
    first = {name: (written[name][0], took[name][0]) for name in both}
    return HeldOut(
        **standings,
        gain=standings["default"].mean - standings["tuned"].mean,
        interval=interval_of_gain(text_figures(human.samples), sets["default"], sets["tuned"], end.yardstick.scales),
        human_distance=end.yardstick.own_distance,
        comparison=measured(human.prompts, seeded, first, human),
    )


def _cells(search: _Search) -> dict[tuple[float, float], float]:
    grid = {
        (temperature, top_p): _with(search.base, _parameters(DecodingOptions(temperature=temperature, top_p=top_p)))
        for temperature in TEMPERATURES
        for top_p in TOP_PS
    }
    return {pair: search.mean(options) for pair, options in grid.items() if options in search.values}


def interval_of_gain(
    human: Sequence[TextFigures],
    default: Sequence[Sequence[TextFigures]],
    tuned: Sequence[Sequence[TextFigures]],
    scales: dict[str, float],
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean distance of default texts less that of tuned ones.

    Both are drawn again together, over prompts and over seeds.

    Args:
        human: a text for each prompt.
        default: for each seed, a text for each prompt; so is `tuned`.
    """
    draw = random.Random(0)
    gains = []
    for _ in range(resamples):
        prompts = draw.choices(range(len(human)), k=len(human))
        seeds = draw.choices(range(len(default)), k=len(default))
        people = figures_of([human[prompt] for prompt in prompts])
        far = {
            name: statistics.fmean(
                distance(figures_of([sets[seed][prompt] for prompt in prompts]), people, scales) for seed in seeds
            )
            for name, sets in (("default", default), ("tuned", tuned))
        }
        gains.append(far["default"] - far["tuned"])
    gains.sort()
    return gains[round(0.025 * (resamples - 1))], gains[round(0.975 * (resamples - 1))]


def settings(options: DecodingOptions) -> str:
    """The searched settings in one line."""
    return " ".join(f"{name}={value:g}" for name, value in _parameters(options).items())


def verdict(found: HeldOut) -> str:
    """What came out, in a sentence."""
    low, high = found.interval
    prompts, seeds = len(found.comparison.prompts), len(found.tuned.distances)
    unseen = f"on {prompts} prompts and {seeds} seeds that the search had not seen"
    if _parameters(found.tuned.options) == _parameters(found.default.options):
        return "No gain: of the settings that were tried the default ones are the nearest."
    nearer = f"nearer to human text than the default ones by {_with_interval(found.gain, low, high)}, {unseen}"
    farther = f"farther from human text than the default ones by {_with_interval(-found.gain, -high, -low)}, {unseen}"
    if found.is_clear:
        return f"The settings found are {nearer}."
    if high < 0:
        return f"A loss: the settings found are {farther}. Keep the default ones, or search with a longer reference."
    more = "A longer reference or more --budget may show a gain."
    if found.gain <= 0:
        return f"No gain: the settings found are {farther}, which may be luck. {more}"
    return f"No clear gain: the settings found are {nearer}, which may be luck. {more}"


def _with_interval(gain: float, low: float, high: float) -> str:
    gain, low, high = (round(value, 2) + 0.0 for value in (gain, low, high))  # 0.00 has no sign
    return f"{gain:.2f} (95 % interval {low:.2f} to {high:.2f})"


def summary(found: HeldOut) -> str:
    """Both settings as a table for a terminal, and the verdict."""
    names = [*SEARCHED, "distance", "over seeds"]
    rows = [["", *names], *([standing.name, *cells(standing)] for standing in (found.default, found.tuned))]
    rows.append(["human text", *[""] * len(SEARCHED), f"{found.human_distance:.2f}", ""])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, "", verdict(found)]) + "\n"


def cells(standing: Standing) -> list[str]:
    """A row of the table: settings, distance, and its standard deviation over the seeds."""
    values = _parameters(standing.options)
    shown = ["off" if values[name] == OFF[name] and name != "temperature" else f"{values[name]:g}" for name in SEARCHED]
    return [*shown, f"{standing.mean:.2f}", f"± {standing.spread:.2f}"]
