"""The search for settings: where it goes, what it finds, and how the end is measured."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import FABLES

import text_generation_demo
from gpt2tg.checkpoint.file_names import GENERATION_CONFIG
from gpt2tg.checkpoint.tuned_settings import read_tuned_settings
from gpt2tg.comparison.figures import LEAST_SCALES, figures_of, text_figures
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import Generator, Sample, load
from gpt2tg.options import DecodingOptions
from gpt2tg.training.output.durable import seal
from gpt2tg.tuning import tune as tuning
from gpt2tg.tuning.tune import Tuning, interval_of_gain, summary, tune, verdict

Capture = pytest.CaptureFixture[str]

BASE = DecodingOptions(seed=5, max_new_tokens=8)

# The model has learned nothing; long enough is all that this text must be.
TEXT = "\n".join(FABLES * 4)


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Generator:
    return load(str(model_dir))


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


class Clock:
    """Time that passes only while the texts of a try are written."""

    def __init__(self, seconds: Callable[[DecodingOptions], float] = lambda options: 1.0) -> None:
        self.now = 0.0
        self.seconds = seconds

    def monotonic(self) -> float:
        return self.now

    def run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take the place of the real one."""
        write = tuning.write

        def writing(generator: Generator, prompts: Sequence[str], options: DecodingOptions, size: int) -> object:
            self.now += self.seconds(options)
            return write(generator, prompts, options, size)

        monkeypatch.setattr(tuning, "time", self)
        monkeypatch.setattr(tuning, "write", writing)


@pytest.fixture(scope="module")
def found(generator: Generator, said: list[str]) -> Iterator[Tuning]:
    """A search with time for some dozen tries."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        Clock().run(monkeypatch)
        yield tune(generator, [TEXT], BASE, 24, 60.0, 32, said.append)


def test_the_default_settings_are_tried_first_and_each_better_ones_are_said(found: Tuning, said: list[str]) -> None:
    assert "temperature=0.7 top_p=0.9 top_k=0 min_p=0 repetition_penalty=1 no_repeat_ngram=0" in said[0]
    distances = [float(line.split("distance ")[1].split()[0]) for line in said if "distance" in line]
    assert distances == sorted(distances, reverse=True)
    assert found.tried > 3
    assert said[-2].startswith(f"{found.tried} settings tried in ")
    assert re.fullmatch(r"done in \d\d s, \d s before the budget was out", said[-1])


def test_the_end_has_prompts_and_seeds_of_its_own(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[tuple[str, ...], int | None]] = []
    Clock().run(monkeypatch)
    write = tuning.write

    def spy(generator: Generator, prompts: tuple[str, ...], options: DecodingOptions, size: int) -> tuple[Sample, ...]:
        seen.append((tuple(prompts), options.seed))
        return write(generator, prompts, options, size)

    monkeypatch.setattr(tuning, "write", spy)
    again = tune(generator, [TEXT], BASE, 24, 30.0, 32, lambda _: None)
    kept = set(again.end.comparison.prompts)
    while_searching = [(prompts, seed) for prompts, seed in seen if not kept.intersection(prompts)]
    at_the_end = [(prompts, seed) for prompts, seed in seen if kept.intersection(prompts)]
    assert len(at_the_end) == 2 * 5
    assert while_searching + at_the_end == seen
    assert not {seed for _, seed in while_searching} & {seed for _, seed in at_the_end}
    assert not {prompt for prompts, _ in while_searching for prompt in prompts} & kept


def test_figures_of_the_end_are_those_of_the_texts(generator: Generator, found: Tuning) -> None:
    """Written and measured once more, from what the outcome says of itself."""
    end = found.end
    assert len(end.tuned.distances) == 5
    assert end.gain == pytest.approx(end.default.mean - end.tuned.mean)
    default = next(result for result in end.comparison.results if result.name == "default")
    assert default.distance == pytest.approx(end.default.distances[0])
    assert default.options.temperature == 0.7


def test_the_heat_map_holds_the_distances_of_the_grid(found: Tuning) -> None:
    assert found.cells
    assert all(t in tuning.TEMPERATURES and p in tuning.TOP_PS and value > 0 for (t, p), value in found.cells.items())


def test_the_same_search_ends_in_the_same_settings(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that counts the tries, the outcome depends on the seed alone."""

    outcomes = []
    for _ in range(2):
        Clock().run(monkeypatch)
        outcome = tune(generator, [TEXT], BASE, 16, 30, 32, lambda _: None)
        outcomes.append((outcome.end.tuned, outcome.end.default, outcome.end.interval))
        monkeypatch.undo()
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("budget", [30, 60])
@pytest.mark.parametrize(
    "seconds",
    [lambda options: 1.0, lambda options: options.temperature, lambda options: 1.7 - options.temperature],
    ids=["steady", "hot is slow", "hot is fast"],
)
def test_the_whole_of_it_takes_the_budget_and_no_more(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, seconds: Callable[[DecodingOptions], float], budget: int
) -> None:
    clock, said = Clock(seconds), []
    clock.run(monkeypatch)
    outcome = tune(generator, [TEXT], BASE, 16, budget, 32, said.append)
    assert 0.85 * budget < clock.now <= budget
    assert len(outcome.end.tuned.distances) == len(outcome.end.default.distances) == 5
    assert said[-1] == f"done in {clock.now:.0f} s, {budget - clock.now:.0f} s before the budget was out"


def test_where_time_is_short_the_end_has_fewer_seeds(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = Clock(), []
    clock.run(monkeypatch)
    outcome = tune(generator, [TEXT], BASE, 16, 13, 32, said.append)
    assert clock.now <= 13
    assert 2 <= len(outcome.end.tuned.distances) < 5
    assert said[1].startswith("a try takes 1.0 s: there is time for about 6; a longer --budget gives more")


def test_a_budget_that_cannot_be_kept_is_said(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """One try beside the default settings, and two seeds for both at the end, are the least."""
    clock, said = Clock(), []
    clock.run(monkeypatch)
    outcome = tune(generator, [TEXT], BASE, 16, 2, 32, said.append)
    assert (outcome.tried, len(outcome.end.tuned.distances), clock.now) == (2, 2, 6)
    assert said[-1] == "done in 6 s, 4 s over the budget"


def test_a_text_too_short_to_search_with(generator: Generator) -> None:
    with pytest.raises(UserError, match=r"holds only \d pieces of text to write after.*needs 16") as caught:
        tune(generator, FABLES, BASE, 24, 1.0, 32, lambda _: None)
    assert caught.value.option == "reference"


def test_the_largest_seed_is_one(generator: Generator) -> None:
    """The seeds of the end lie beyond it, and must be seeds all the same."""
    tune(generator, [TEXT], replace(BASE, seed=2**32 - 1), 16, 0.1, 32, lambda _: None)


# --- the interval -------------------------------------------------------------------------------------------------


def texts_with(logprob: float, spread: float, seed: int) -> list:
    draw = random.Random(seed)
    return text_figures(
        [Sample("", f"w{n}", n, 0, 1, (1,) * 10, "length", 10 * draw.gauss(logprob, spread)) for n in range(40)]
    )


def test_the_interval_holds_a_gain_that_is_known() -> None:
    """Only log-probabilities differ: the gain is the difference of their distances, over the number of figures."""
    human = texts_with(-3.0, 0.1, 0)
    default, tuned = [[texts_with(mean, 0.1, seed) for seed in (1, 2, 3)] for mean in (-2.0, -2.9)]
    scales = {"logprob": 0.1, "length": LEAST_SCALES["length"]}
    low, high = interval_of_gain(human, default, tuned, scales)
    assert low < (1.0 - 0.1) / 0.1 / 2 < high
    assert high - low < 0.6
    assert all(figures_of(texts).length == 10 for texts in default)


def test_the_interval_of_equal_settings_holds_zero() -> None:
    human = texts_with(-3.0, 0.1, 0)
    same = [texts_with(-2.8, 0.2, seed) for seed in (1, 2, 3, 4, 5)]
    other = [texts_with(-2.8, 0.2, seed) for seed in (6, 7, 8, 9, 10)]
    low, high = interval_of_gain(human, same, other, {"logprob": 0.1})
    assert low < 0 < high


def test_the_verdict_says_whether_the_gain_is_clear(found: Tuning) -> None:
    clear = replace(found.end, gain=1.5, interval=(0.9, 2.0))
    assert verdict(clear).startswith(
        "The settings found are nearer to human text than the default ones by 1.50 (95 % interval 0.90 to 2.00)"
    )
    assert verdict(replace(clear, interval=(-0.1, 2.0))).startswith("No clear gain")
    same = replace(clear, interval=(0.0, 0.0), tuned=replace(clear.tuned, options=clear.default.options))
    assert verdict(same) == "No gain: of the settings that were tried the default ones are the nearest."


@pytest.mark.parametrize(
    ("gain", "interval", "words"),
    [
        (0.5, (-0.1, 0.9), "No clear gain: the settings found are nearer to human text than the default ones by 0.50 "
         "(95 % interval -0.10 to 0.90), .* which may be luck"),
        (-0.3, (-0.8, 0.1), "No gain: the settings found are farther from human text than the default ones by 0.30 "
         "(95 % interval -0.10 to 0.80), .* which may be luck"),
        (0.0, (-0.4, 0.0), "No gain: the settings found are farther from human text than the default ones by 0.00 "
         "(95 % interval 0.00 to 0.40), .* which may be luck"),
        (-0.5, (-0.8, -0.2), "A loss: the settings found are farther from human text than the default ones by 0.50 "
         "(95 % interval 0.20 to 0.80), .* Keep the default ones"),
    ],
)  # fmt: skip
def test_the_verdict_says_on_which_side_the_settings_found_lie(
    found: Tuning, gain: float, interval: tuple[float, float], words: str
) -> None:
    end = replace(found.end, gain=gain, interval=interval)
    assert end.tuned.options != end.default.options
    beginning, rest = words.split(" .* ")
    assert verdict(end).startswith(beginning)
    assert rest in verdict(end)
    assert ("luck" in verdict(end)) == ("luck" in rest)


def test_the_summary_has_both_settings(found: Tuning) -> None:
    header, default, tuned, human, *_ = summary(found.end).splitlines()
    assert header.split()[:3] == ["temperature", "top_p", "top_k"]
    assert default.split()[:6] == ["default", "0.7", "0.9", "off", "off", "off"]
    assert tuned.split()[1] == f"{found.end.tuned.options.temperature:g}"
    assert human.split()[-1] == f"{found.end.human_distance:.2f}"


# --- from the command line ----------------------------------------------------------------------------------------


@pytest.fixture
def words(model_dir: Path, tmp_path: Path) -> list[str]:
    text, model = tmp_path / "held_out.txt", tmp_path / "model"
    text.write_text(TEXT, encoding="utf-8")
    shutil.copytree(model_dir, model)
    return [
        "--model_path", str(model), "--tune", "--reference", str(text), "--examples", "file", "--max_new_tokens", "8",
        "--budget", "16", "--seed", "1", "--num_prompts", "16",
    ]  # fmt: skip


def gain_between(monkeypatch: pytest.MonkeyPatch, low: float, high: float) -> None:
    """The search ends with this interval. Its first try is not the best one, so that there is something to write."""
    Clock().run(monkeypatch)
    monkeypatch.setattr(tuning, "interval_of_gain", lambda *_: (low, high))


def test_tuning_leaves_the_checkpoint_alone_unless_told(
    words: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    gain_between(monkeypatch, 0.1, 0.9)
    before = (tmp_path / "model" / GENERATION_CONFIG).read_bytes()
    page = tmp_path / "report.html"
    assert text_generation_demo.main([*words, "--report", str(page)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[1].startswith("default")
    assert err.splitlines()[1] == "measuring the reference; then settings are tried and the best checked, in 16 s"
    assert "--apply saves them in the checkpoint" in err
    assert (tmp_path / "model" / GENERATION_CONFIG).read_bytes() == before
    html = page.read_text(encoding="utf-8")
    assert "Where the search went" in html
    assert "Distance from human text by temperature and top-p" in html


def test_without_a_clear_gain_nothing_is_applied(
    words: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    gain_between(monkeypatch, -0.1, 0.9)
    before = (tmp_path / "model" / GENERATION_CONFIG).read_bytes()
    assert text_generation_demo.main([*words, "--apply"]) == 0
    out, err = capsys.readouterr()
    assert "No clear gain: " in out
    assert "--apply leaves the checkpoint as it is\nto write with the settings found: --" in err
    assert "makes them the checkpoint's own" not in err
    assert (tmp_path / "model" / GENERATION_CONFIG).read_bytes() == before


def test_applied_settings_are_those_that_were_printed(
    words: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    gain_between(monkeypatch, 0.1, 0.9)
    assert text_generation_demo.main([*words, "--apply"]) == 0
    out, err = capsys.readouterr()
    found = read_tuned_settings(tmp_path / "model")
    assert out.splitlines()[2].split()[1] == f"{found['temperature']:g}"
    assert f"{tmp_path / 'model' / GENERATION_CONFIG} now has --" in err
    assert json.loads((tmp_path / "model" / GENERATION_CONFIG).read_text())["eos_token_id"] == 0


def test_the_checkpoint_that_is_chosen_is_tuned(
    words: list[str], tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gain_between(monkeypatch, 0.1, 0.9)
    saved = tmp_path / "model" / "checkpoint-5"
    shutil.copytree(model_dir, saved)
    seal(saved, {"step": 5})
    assert text_generation_demo.main([*words, "--checkpoint", "5", "--apply"]) == 0
    assert read_tuned_settings(saved)
    assert not read_tuned_settings(tmp_path / "model")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tune"], "--reference is required"),
        (["--tune", "--reference", "nowhere.txt"], "--reference nowhere.txt cannot be read"),
        (["--tune", "--reference", __file__, "--budget", "0"], "--budget 0.0 is out of range"),
        (["--tune", "--reference", __file__, "--apply"], "--apply writes into the model's directory, and --model_name"),
    ],
)
def test_mistakes_end_in_one_line(flags: list[str], message: str, capsys: Capture) -> None:
    assert text_generation_demo.main(["--model_name", "gpt2-tiny", *flags]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err


def test_flags_without_effect_are_said(words: list[str], capsys: Capture) -> None:
    assert text_generation_demo.main([*words, "--temperature", "0.3", "--decoding", "beam", "--compare"]) == 0
    err = capsys.readouterr().err
    for flag in ("--temperature", "--decoding", "--compare"):
        assert f"{flag} is not used: --tune " in err
