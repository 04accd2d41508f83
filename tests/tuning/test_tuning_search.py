"""The search for settings: what it tries, what it finds, and how it keeps to its budget."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import FABLES
from trial_clock import TEXT, Clock

from gpt2tg.errors import UserError
from gpt2tg.generation.generator import Generator, Sample, load
from gpt2tg.options import DecodingOptions
from gpt2tg.tuning import trials
from gpt2tg.tuning.search import Tuning, tune_settings
from gpt2tg.tuning.search_space import TEMPERATURES, TOP_PS

BASE = DecodingOptions(seed=5, max_new_tokens=8)


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Generator:
    return load(str(model_dir))


@pytest.fixture(scope="module")
def notices() -> list[str]:
    return []


@pytest.fixture(scope="module")
def found(generator: Generator, notices: list[str]) -> Iterator[Tuning]:
    """A search with time for a few dozen trials."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        Clock().replace_the_real_one(monkeypatch)
        yield tune_settings(generator, [TEXT], BASE, 24, 60.0, 32, notices.append)


def test_default_is_tried_first_and_each_improvement_reported(found: Tuning, notices: list[str]) -> None:
    assert "temperature=0.7 top_p=0.9 top_k=0 min_p=0 repetition_penalty=1 no_repeat_ngram=0" in notices[0]
    distances = [float(line.split("distance ")[1].split()[0]) for line in notices if "distance" in line]
    assert distances == sorted(distances, reverse=True)
    assert found.tried > 3
    assert notices[-2].startswith(f"{found.tried} settings tried in ")
    assert re.fullmatch(r"done in \d\d s, \d s under the budget", notices[-1])


def test_check_has_prompts_and_seeds_of_its_own(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[tuple[str, ...], int | None]] = []
    Clock().replace_the_real_one(monkeypatch)
    generate = trials.generate_samples

    def spy(generator: Generator, prompts: Sequence[str], options: DecodingOptions, size: int) -> tuple[Sample, ...]:
        seen.append((tuple(prompts), options.seed))
        return generate(generator, prompts, options, size)

    monkeypatch.setattr(trials, "generate_samples", spy)
    again = tune_settings(generator, [TEXT], BASE, 24, 30.0, 32, lambda _: None)
    held_out = set(again.check.comparison.prompts)
    in_search = [(prompts, seed) for prompts, seed in seen if not held_out.intersection(prompts)]
    in_check = [(prompts, seed) for prompts, seed in seen if held_out.intersection(prompts)]
    assert len(in_check) == 2 * 5
    assert in_search + in_check == seen
    assert not {seed for _, seed in in_search} & {seed for _, seed in in_check}
    assert not {prompt for prompts, _ in in_search for prompt in prompts} & held_out


def test_check_agrees_with_its_comparison(found: Tuning) -> None:
    check = found.check
    assert len(check.tuned.distances) == 5
    assert check.gain == pytest.approx(check.default.mean - check.tuned.mean)
    default = next(result for result in check.comparison.results if result.name == "default")
    assert default.distance == pytest.approx(check.default.distances[0])
    assert default.options.temperature == 0.7


def test_grid_distances_lie_on_the_grid(found: Tuning) -> None:
    assert found.cells
    assert all(t in TEMPERATURES and p in TOP_PS and value > 0 for (t, p), value in found.cells.items())


def test_same_search_finds_the_same_settings(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that counts the trials, the outcome depends on the seed alone."""
    outcomes = []
    for _ in range(2):
        Clock().replace_the_real_one(monkeypatch)
        check = tune_settings(generator, [TEXT], BASE, 16, 30, 32, lambda _: None).check
        outcomes.append((check.tuned, check.default, check.interval))
        monkeypatch.undo()
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("budget", [30, 60])
@pytest.mark.parametrize(
    "seconds",
    [lambda options: 1.0, lambda options: options.temperature, lambda options: 1.7 - options.temperature],
    ids=["steady", "hot is slow", "hot is fast"],
)
def test_budget_is_used_and_not_exceeded(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, seconds: Callable[[DecodingOptions], float], budget: int
) -> None:
    clock, notices = Clock(seconds), []
    clock.replace_the_real_one(monkeypatch)
    check = tune_settings(generator, [TEXT], BASE, 16, budget, 32, notices.append).check
    assert 0.85 * budget < clock.now <= budget
    assert len(check.tuned.distances) == len(check.default.distances) == 5
    assert notices[-1] == f"done in {clock.now:.0f} s, {budget - clock.now:.0f} s under the budget"


def test_short_budget_gives_the_check_fewer_seeds(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, notices = Clock(), []
    clock.replace_the_real_one(monkeypatch)
    outcome = tune_settings(generator, [TEXT], BASE, 16, 13, 32, notices.append)
    assert clock.now <= 13
    assert 2 <= len(outcome.check.tuned.distances) < 5
    assert notices[1].startswith("one trial takes 1.0 s, so the budget allows about 6: raise --budget")


def test_exceeded_budget_is_reported(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """One trial beside the default settings, and two seeds for both in the check, are the least."""
    clock, notices = Clock(), []
    clock.replace_the_real_one(monkeypatch)
    outcome = tune_settings(generator, [TEXT], BASE, 16, 2, 32, notices.append)
    assert (outcome.tried, len(outcome.check.tuned.distances), clock.now) == (2, 2, 6)
    assert notices[-1] == "done in 6 s, 4 s over the budget"


def test_too_short_text_is_refused(generator: Generator) -> None:
    with pytest.raises(UserError, match=r"has only \d passages, and tuning needs 16") as caught:
        tune_settings(generator, FABLES, BASE, 24, 1.0, 32, lambda _: None)
    assert caught.value.option == "reference"


def test_largest_seed_is_allowed(generator: Generator) -> None:
    """The seeds of the check would lie beyond it, and must wrap around."""
    tune_settings(generator, [TEXT], replace(BASE, seed=2**32 - 1), 16, 0.1, 32, lambda _: None)
