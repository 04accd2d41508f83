"""Search for the settings whose texts are closest to human text.

Human text is cut into passages. Every second one is searched with, and the others are held out. The model continues the
prompts of the passages, and the distance of its texts from the human ones is minimised: first on a grid of temperature
and top-p, then over all settings with Optuna's tree-structured Parzen estimator (Bergstra et al. 2011). The best few
settings are tried again with other seeds, since the best of many trials may be the best by luck. The winner is checked
against the default settings on the held-out passages, with new seeds. All steps share one time budget: from the
speed of the trials so far the search estimates what the later steps need, and leaves them that time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gpt2tg.comparison.reference import HumanText, prepare_human_text
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import Generator
from gpt2tg.options import DecodingOptions
from gpt2tg.tuning.held_out import HeldOutCheck, check_on_held_out
from gpt2tg.tuning.search_space import SearchedSettings, grid_points, shuffled_grid
from gpt2tg.tuning.trials import CHECK_SEEDS, FINALIST_SEEDS, FINALISTS, FIRST_CHECK_SEED, Budget, Trials

# Share of the budget in which points of the grid are tried.
GRID_SHARE = 0.3

# With fewer trials the search finds little, so the user is told how to get more.
FEW_TRIALS = 10

# Passages of human text that tuning needs; half of them are held out.
MIN_PASSAGES = 16


@dataclass(frozen=True)
class Tuning:
    """The outcome of a search."""

    check: HeldOutCheck
    tried: int
    """Number of settings that were tried."""
    seconds: float
    """Duration of the search without the check."""
    cells: dict[tuple[float, float], float]
    """Mean distance by (temperature, top-p) on the grid."""


def tune_settings(
    generator: Generator,
    examples: Sequence[str],
    base: DecodingOptions,
    num_prompts: int,
    budget_seconds: float,
    batch_size: int,
    say: Callable[[str], None],
) -> Tuning:
    """Search for the settings of `top_p` that suit a model and human text, and check them on held-out text.

    Args:
        base: the default settings that the tuned ones are compared with; length, seed and stop strings stay as here.
        num_prompts: most passages of human text to use.
        budget_seconds: time for search and check. Two trials and a check with two seeds are always run, even if they
            exceed the budget.
        say: receives a line whenever settings are better than all before, and on the use of the time.

    Raises:
        UserError: the text is too short.
    """
    budget = Budget(budget_seconds)
    human = prepare_human_text(generator, examples, base, (), num_prompts)
    count = len(human.prompts)
    if count < MIN_PASSAGES:
        raise UserError(
            f"has only {count} passages, and tuning needs {MIN_PASSAGES}: give a longer text, shorten the passages "
            "with --max_new_tokens, raise --num_prompts, or change what one example is with --examples",
            "reference",
        )
    base = replace(base, max_length=None, max_new_tokens=human.new_tokens, num_sequences=1)
    seed = base.seed or 0
    trials = Trials(generator, base, _every_second(human, 0), batch_size)
    run_trials(trials, budget, seed, say)
    tuned = choose_best(trials, budget, seed)
    seconds, tried = budget.used, len(trials.distances)
    say(f"{tried} settings tried in {seconds:.0f} s; now the best are checked on held-out text with new seeds")
    held_out = _every_second(human, 1)
    check = check_on_held_out(generator, held_out, base, tuned, batch_size, seed + FIRST_CHECK_SEED, budget)
    say(_time_used(budget))
    return Tuning(check, tried, seconds, grid_distances(trials))


def _every_second(human: HumanText, first: int) -> HumanText:
    """Return every second passage, from the first or from the second one."""
    count = len(human.prompts)
    return HumanText(human.samples[first:count:2], human.prompts[first::2], human.new_tokens)


def _time_used(budget: Budget) -> str:
    if budget.left >= 0:
        return f"done in {budget.used:.0f} s, {budget.left:.0f} s under the budget"
    return f"done in {budget.used:.0f} s, {-budget.left:.0f} s over the budget"


def run_trials(trials: Trials, budget: Budget, seed: int, say: Callable[[str], None]) -> None:
    """Try the default settings, then the grid, then what Optuna suggests, until the reserved time begins."""
    import optuna  # takes a second to import, which the report need not wait for

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    grid = shuffled_grid(seed)
    study.enqueue_trial(SearchedSettings.of(trials.base).as_dict())
    smallest = float("inf")
    while len(trials.distances) < 2 or budget.left - trials.trial_seconds() >= trials.reserved_seconds(budget.seconds):
        if budget.used < budget.seconds * GRID_SHARE and (point := next(grid, None)):
            study.enqueue_trial(point.as_dict())
        trial = study.ask()
        options = SearchedSettings.suggested_by(trial).apply_to(trials.base)
        distance = trials.run(options, seed)
        study.tell(trial, distance)
        if distance < smallest:
            smallest = distance
            number = len(trials.distances)
            say(f"{number:>4}  {budget.used:4.0f} s  distance {distance:.2f}  {SearchedSettings.of(options)}")
        if len(trials.seconds) == 1 and (advice := _advice(trials, budget)):
            say(advice)


def _advice(trials: Trials, budget: Budget) -> str:
    """Return how to get more trials if there is time for a few only; empty if there is enough."""
    seconds = trials.trial_seconds()
    expected = 1 + max(1, int((budget.left - trials.reserved_seconds(budget.seconds)) / seconds))
    if expected >= FEW_TRIALS:
        return ""
    return (
        f"one trial takes {seconds:.1f} s, so the budget allows about {expected}: raise --budget, "
        "or make trials shorter with a smaller --num_prompts or --max_new_tokens"
    )


def choose_best(trials: Trials, budget: Budget, seed: int) -> DecodingOptions:
    """Try the best few settings with more seeds while time allows; return those with the smallest mean distance."""
    finalists = trials.ranked()[:FINALISTS]
    for seeds in range(2, FINALIST_SEEDS + 1):
        for options in finalists:
            is_time = budget.left - trials.seconds[options] >= trials.check_seconds(CHECK_SEEDS)
            if is_time and len(trials.distances[options]) < seeds:
                trials.run(options, seed)
    tried_again = [options for options in finalists if len(trials.distances[options]) > 1]
    return min(tried_again or finalists, key=trials.mean_distance)


def grid_distances(trials: Trials) -> dict[tuple[float, float], float]:
    """Return the mean distance by (temperature, top-p) of the points of the grid that were tried."""
    points = {(point.temperature, point.top_p): point.apply_to(trials.base) for point in grid_points()}
    return {pair: trials.mean_distance(options) for pair, options in points.items() if options in trials.distances}
