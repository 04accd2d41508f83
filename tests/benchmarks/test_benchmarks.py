"""The benchmark programs: what they count, what they write into the page, and that rivals do the same work."""

from __future__ import annotations

import json
import math
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import chart
import data
import decode
import formats
import precision
import pytest
import rivals
import scaling
import stories
import torch
import train
import workers
from transformers import GPT2LMHeadModel

ROOT = Path(__file__).resolve().parents[2]
MACHINE = {"processor": "A processor", "cores": 2, "memory_gb": 8.0, "versions": {"torch": "2.9"}}


def speed(median: float, **more: object) -> dict:
    """Return figures of one rival."""
    return {"tokens_per_second": {"median": median, "min": median - 1, "max": median + 1}, **more}


def decode_results() -> dict:
    """Return the output of decode.py for two rivals at two kinds of work."""
    greedy = {
        "gpt2tg-fp32": speed(50.0, times_reference=2.5, gb_per_second=20.0, equal_texts=3, texts=3),
        "transformers-eager": speed(20.0, times_reference=1.0, gb_per_second=8.0, equal_texts=3, texts=3),
        "ctranslate2-int8-mkl": speed(30.0, times_reference=1.5, gb_per_second=3.0, equal_texts=1, texts=3),
        "ctranslate2-int8-onednn": speed(45.0, times_reference=2.25, gb_per_second=4.5, equal_texts=0, texts=3),
    }
    beams = {"gpt2tg-fp32": speed(40.0, times_reference=4.0), "transformers-eager": speed(10.0, times_reference=1.0)}
    common = {"shape": "gpt2", "prompt": 16, "new_tokens": 128}
    return {
        "machine": MACHINE,
        "threads": 2,
        "repeats": 3,
        "bandwidth_gb_per_second": 25.0,
        "results": [
            {**common, "work": "greedy-1", "rows": 1, "rivals": greedy},
            {**common, "work": "beam-5", "rows": 1, "rivals": beams},
        ],
    }


def page(directory: Path) -> Path:
    """A page with marks for every table, and text around them."""
    names = ("decode", "bandwidth", "ids", "startup", "scaling")
    path = directory / "page.md"
    path.write_text("\n".join(f"before {n}\n<!-- {n} -->\nold\n<!-- end of {n} -->" for n in names), encoding="utf-8")
    return path


def run_chart(monkeypatch: pytest.MonkeyPatch, results: Path, page: Path) -> Path:
    """Run chart.py as a user would, and return the path of its chart."""
    picture = page.with_suffix(".png")
    flags = ["--results", str(results), "--page", str(page), "--picture", str(picture)]
    monkeypatch.setattr(sys, "argv", ["chart.py", *flags])
    chart.main()
    return picture


def test_texts_are_compared_token_by_token() -> None:
    said = decode.agreement([[1, 2, 3], [1, 9, 3], [1, 2, 8], [1, 2]], [[1, 2, 3]] * 4)
    assert said == {"equal_texts": 1, "texts": 4, "first_difference": 1}


def test_speed_is_the_median_of_runs() -> None:
    def runs(*seconds: float) -> list[dict]:
        return [{"seconds": second, "result": [[5, 6]]} for second in seconds]

    found = decode.figures(runs(1.0, 4.0, 2.0), 100, [[5, 6]] * 3, runs(8.0, 6.0, 5.0), 3e9)
    assert found["tokens_per_second"] == {"median": 50, "min": 25, "max": 100}
    assert found["times_reference"] == 3
    assert (found["equal_texts"], found["texts"], found["first_difference"]) == (3, 3, None)
    assert found["gb_per_second"] == 150


def test_prompts_are_equal_in_runs_and_differ_in_repetitions() -> None:
    first, again, later = (decode.prompts(8, 16, repeat) for repeat in (0, 0, 1))
    assert first == again != later
    assert [len(row) for row in first] == [16] * 8
    assert all(0 < token < formats.VOCABULARY for row in first + later for token in row)


@pytest.mark.parametrize("name", ["gpt2tg-fp32", "transformers-eager"])
def test_timed_generation_matches_transformers(name: str, tmp_path: Path) -> None:
    """On the bundled model. The other rivals round, compile or need converted files: decode.py compares their texts."""
    model = GPT2LMHeadModel.from_pretrained(formats.checkpoint("gpt2-tiny"), local_files_only=True).eval()
    prompts = [[11, 22, 33], [44, 55, 66]]
    rival = rivals.ENTRIES[name].make("gpt2-tiny", tmp_path)
    for kind, how in (("greedy", {}), ("beam", {"num_beams": rivals.BEAMS})):
        ids = torch.tensor(prompts)
        written = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=9,
            min_new_tokens=9,
            pad_token_id=0,
            do_sample=False,
            **how,
        )
        assert rival.write(rivals.Job(kind, prompts, 9, lookup=0)) == written[:, 3:].tolist(), kind
    assert len(rival.steps(rivals.Job("steps", prompts, 4))) == 4


def test_rival_that_cannot_be_loaded_is_left_out(
    forked_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", str(forked_python))
    with workers.Team(["gpt2tg-fp32"], "no such shape", tmp_path, 1) as team:
        assert team.workers == []
    assert "gpt2tg-fp32 is left out: KeyError: 'no such shape'" in capfd.readouterr().err


class Turns:
    """A worker that answers at once and records its jobs."""

    def __init__(self, name: str, asked: list[tuple[str, int]], refuses: bool = False) -> None:
        self.name, self.asked, self.refuses = name, asked, refuses

    def run(self, job: int) -> dict:
        self.asked.append((self.name, job))
        return {"refused": "no"} if self.refuses else {"seconds": 1.0, "result": job}

    def processor_seconds(self) -> float:
        return 0.0

    def close(self) -> None:
        pass


def test_rivals_take_turns_after_a_warm_up_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "SETTLE", 0)
    asked: list[tuple[str, int]] = []
    team = workers.Team([], "gpt2", tmp_path, 1)
    team.workers = [Turns("a", asked), Turns("idle", asked, refuses=True), Turns("b", asked)]  # type: ignore[list-item]
    answers = team.race(lambda repeat: repeat, 2)  # type: ignore[arg-type, return-value]
    assert asked == [("a", -1), ("idle", -1), ("b", -1), ("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert {name: [answer["result"] for answer in found] for name, found in answers.items()} == {
        "a": [0, 1],
        "b": [0, 1],
    }


def test_the_page_is_filled_and_the_chart_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "decode.json").write_text(json.dumps(decode_results()), encoding="utf-8")
    path = page(tmp_path)
    picture = run_chart(monkeypatch, tmp_path, path)
    filled = path.read_text(encoding="utf-8")
    assert "| gpt2, prompt of 16 | one text, greedy | one text, 5 beams |" in filled
    assert "| gpt2tg fp32 | 50.0 (2.50) | 40.0 (4.00) |" in filled
    assert "| CTranslate2 int8 | 45.0 (2.25) |  |" in filled  # the faster of its libraries, once
    assert "| gpt2 | gpt2tg fp32 | 20.0 | 80% |" in filled
    assert "| gpt2 | CTranslate2 int8 (MKL) | 1 of 3 |" in filled
    assert filled.count("old") == 2  # of start-up and scaling there are no results
    assert filled.count("before ") == 5
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_results_of_several_runs_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = decode_results()
    medium = [{**table, "shape": "gpt2-medium"} for table in told["results"]]
    (tmp_path / "decode-1.json").write_text(json.dumps(told), encoding="utf-8")
    (tmp_path / "decode-2.json").write_text(json.dumps({**told, "repeats": 5, "results": medium}), encoding="utf-8")
    path = page(tmp_path)
    run_chart(monkeypatch, tmp_path, path)
    filled = path.read_text(encoding="utf-8")
    assert "| gpt2, prompt of 16 |" in filled
    assert "| gpt2-medium, prompt of 16 |" in filled
    assert "Medians of 3 to 5 runs in turn." in filled


def test_a_page_without_a_place_for_a_table_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "decode.json").write_text(json.dumps(decode_results()), encoding="utf-8")
    path = tmp_path / "page.md"
    path.write_text("nothing", encoding="utf-8")
    with pytest.raises(SystemExit, match="has no place for decode"):
        run_chart(monkeypatch, tmp_path, path)
    assert path.read_text(encoding="utf-8") == "nothing"


def test_the_page_has_a_place_for_every_table() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for name in ("decode", "bandwidth", "ids", "startup", "scaling"):
        assert f"## new {name}" in chart.fill(text, name, f"## new {name}")


def test_each_case_of_scaling_is_measured_once() -> None:
    cases = scaling.plan(list(scaling.SHAPES))
    assert len({json.dumps(case, sort_keys=True) for case in cases}) == len(cases)
    assert {case["context"] for case in cases} == set(scaling.CONTEXTS)
    assert {case["rows"] for case in cases} == set(scaling.ROWS)
    assert {case["shape"] for case in cases} == set(scaling.SHAPES)
    assert all(sum(case[key] != scaling.PLAIN[key] for key in case) <= 1 for case in cases)
    assert {case["shape"] for case in scaling.plan(["gpt2-medium"])} == {"gpt2-medium"}


def test_prepared_text_has_the_length_and_no_repeated_line(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    twice = 2 * data.SAMPLE.stat().st_size
    data.write_text(path, twice)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert twice <= path.stat().st_size < twice + 1000
    assert len(set(lines)) == len(lines)


def test_first_difference_of_a_rounded_text() -> None:
    exact = [(1, 2, 3), (4, 5, 6), (7, 8, 9), (1, 1, 1)]
    said = precision.compared([(1, 2, 3), (4, 0, 6), (0, 8, 9), (1, 1, 0)], exact)
    assert said == {"texts_that_differ": 3, "first_difference_earliest": 1, "first_difference_median": 2}
    assert precision.compared(exact, exact)["first_difference_median"] is None


def test_perplexity_per_precision_matches_transformers(model_dir: Path, reference: GPT2LMHeadModel) -> None:
    """The text is shorter than the context length, so that one window holds it."""
    ids = [(7 * n) % 299 + 1 for n in range(60)]
    model = precision.load(str(model_dir), "cpu", precision="fp32").model
    with torch.no_grad():
        loss = reference(torch.tensor([ids]), labels=torch.tensor([ids])).loss
    assert precision.perplexity(model, ids) == pytest.approx(math.exp(loss), rel=1e-4)


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("The king had a son. The king had a daughter.", False),
        ("The king had a son. He wept. The king had a son.", True),
        ('"I will go with you," he said. I WILL go, with you he said!', True),
        ("The fox ran away\nThe fox ran away", True),
        ('"Yes," he said. "No," he said. "Yes," he said.', False),  # too short to count
        ("The fox ran away and the fox ran away and the fox ran away.", False),  # one sentence, a loop within it
        ("", False),
    ],
)
def test_repeated_sentences_are_found(text: str, repeats: bool) -> None:
    assert stories.repeats_sentence(text) is repeats


@pytest.fixture
def training(model_dir: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict]:
    """Run one of the two trainers of train.py for a few steps."""
    monkeypatch.setattr(train.machine, "cores", lambda: 1)
    settings = dict(model=str(model_dir), train_file=str(text_file), block_size=32, batch_size=1, steps=8)
    settings |= dict(bf16=False, fp16=False, gradient_checkpointing=False, compile="off", dropout=0.0, logging_steps=1)
    return lambda name: train.run(Namespace(only=name, **settings))


@pytest.mark.filterwarnings("ignore:'pin_memory'")  # what the plain Trainer says at its defaults
def test_both_trainers_reach_the_same_loss(training: Callable[[str], dict]) -> None:
    ours, plain = training("gpt2tg"), training("plain Trainer")
    assert len(ours["losses"]) == 8
    assert ours["losses"] == pytest.approx(plain["losses"], abs=1e-3)
    assert ours["losses"][-1] != ours["losses"][0]
    assert min(ours["tokens_per_second"], plain["tokens_per_second"]) > 0
