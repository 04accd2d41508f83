"""The benchmark programs: what they count, what they write into the page, and that rivals do the same work."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import chart
import data
import decode
import formats
import jobs
import precision
import psutil
import pytest
import results
import rivals
import roof
import scaling
import startup
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
    """Return what decode.py writes for a few rivals at two kinds of work."""
    greedy = {
        "gpt2tg-fp32": speed(50.0, times_reference=2.5, equal_texts=3, texts=3),
        "transformers-eager": speed(20.0, times_reference=1.0, equal_texts=3, texts=3),
        "ctranslate2-int8-mkl": speed(30.0, times_reference=1.5, equal_texts=1, texts=3),
        "ctranslate2-int8-onednn": speed(45.0, times_reference=2.25, equal_texts=0, texts=3),
        "llama.cpp-F16": speed(40.0, times_reference=2.0, equal_texts=3, texts=3),
    }
    beams = {"gpt2tg-fp32": speed(40.0, times_reference=4.0), "transformers-eager": speed(10.0, times_reference=1.0)}
    common = {"shape": "gpt2", "prompt": 16, "new_tokens": 128, "rows": 1}
    return {
        "run": {"threads": 2, "repeats": 3},
        "machine": MACHINE,
        "bandwidth_gb_per_second": 25.0,
        "gflops": {"fp32": 250.0, "bf16": 500.0, "int8": 1000.0},
        "rivals": {
            name: {"bytes_per_weight": 1 if "int8" in name else 4, "products": "int8" if "int8" in name else "fp32"}
            for name in greedy
        },
        "results": [
            {**common, "work": "greedy-1", "rivals": greedy, "reasons": {}},
            {**common, "work": "beam-5", "rivals": beams, "reasons": {"llama.cpp-F16": "no beam search"}},
        ],
    }


TABLES = [name for tables in chart.MAKERS.values() for name in tables]


def page(directory: Path) -> Path:
    """A page with marks for every table, and text around them."""
    path = directory / "page.md"
    text = "\n".join(f"before {name}\n<!-- {name} -->\nold\n<!-- end of {name} -->" for name in TABLES)
    path.write_text(text, encoding="utf-8")
    return path


def run_chart(monkeypatch: pytest.MonkeyPatch, folder: Path, page: Path) -> Path:
    """Run chart.py as a user would, and return the path of its chart."""
    picture = page.with_suffix(".png")
    flags = ["--results", str(folder), "--page", str(page), "--picture", str(picture)]
    flags += ["--roof_picture", str(page.with_suffix(".roof.png"))]
    monkeypatch.setattr(sys, "argv", ["chart.py", *flags])
    chart.main()
    return picture


def test_texts_are_compared_token_by_token() -> None:
    said = decode.agreement([[1, 2, 3], [1, 9, 3], [1, 2, 8], [1, 2]], [[1, 2, 3]] * 4)
    assert said == {"equal_texts": 1, "texts": 4, "first_difference": 1}


def test_speed_is_the_median_of_runs() -> None:
    def runs(*seconds: float) -> list[dict]:
        return [{"seconds": second, "result": [[5, 6]]} for second in seconds]

    found = decode.figures(runs(1.0, 4.0, 2.0), 100, [[5, 6]] * 3, runs(8.0, 6.0, 5.0))
    assert found["tokens_per_second"] == {"median": 50, "min": 25, "max": 100}
    assert found["times_reference"] == 3
    assert (found["equal_texts"], found["texts"], found["first_difference"]) == (3, 3, None)


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
    for kind, how in (("greedy", {}), ("beam", {"num_beams": jobs.BEAMS})):
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
        assert rival.write(jobs.Job(kind, prompts, 9, lookup=0)) == written[:, 3:].tolist(), kind
    assert len(rival.steps(jobs.Job("steps", prompts, 4))) == 4


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
        return {"refused": "no beam search"} if self.refuses else {"seconds": 1.0, "result": job}

    def processor_seconds(self) -> float:
        return 0.0

    def close(self) -> None:
        pass


@pytest.fixture
def team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> workers.Team:
    """Return a team that waits for nothing, without workers."""
    monkeypatch.setattr(workers, "SETTLE", 0)
    return workers.Team([], "gpt2", tmp_path, 1)


def test_rivals_take_turns_after_a_warm_up_turn(team: workers.Team) -> None:
    asked: list[tuple[str, int]] = []
    team.workers = [Turns("a", asked), Turns("idle", asked, refuses=True), Turns("b", asked)]  # type: ignore[list-item]
    answers, reasons = team.race(lambda repeat: repeat, 2)  # type: ignore[arg-type, return-value]
    assert asked == [("a", -1), ("idle", -1), ("b", -1), ("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert {name: [answer["result"] for answer in found] for name, found in answers.items()} == {
        "a": [0, 1],
        "b": [0, 1],
    }
    assert reasons == {"idle": "no beam search"}


def test_company_is_there_only_in_its_turns(team: workers.Team, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[object] = []

    @contextlib.contextmanager
    def neighbour() -> Iterator[None]:
        log.append("starts")
        yield
        log.append("ends")

    monkeypatch.setattr(workers, "busy_program", neighbour)
    team.workers = [Turns("a", log)]  # type: ignore[arg-type, list-item]
    team.race(lambda repeat: repeat, 2, lambda repeat: repeat == 1)  # type: ignore[arg-type, return-value]
    assert log == [("a", -1), ("a", 0), "starts", ("a", 1), "ends"]


def test_busy_program_computes_and_ends() -> None:
    before = {child.pid for child in psutil.Process().children()}
    with workers.busy_program():
        (busy,) = (child for child in psutil.Process().children() if child.pid not in before)
        wait_until(lambda: busy.cpu_times().user > 0.05)
        assert busy.nice() == psutil.Process().nice()
    assert not busy.is_running()


def wait_until(is_true: Callable[[], bool]) -> None:
    """Wait for something that another process does; fail after 20 seconds."""
    end = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_page_is_filled_and_the_charts_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "decode.json").write_text(json.dumps(decode_results()), encoding="utf-8")
    path = page(tmp_path)
    picture = run_chart(monkeypatch, tmp_path, path)
    filled = path.read_text(encoding="utf-8")
    assert "| gpt2 | 16: one text, greedy | 16: one text, 5 beams | equal texts |" in filled
    assert "| gpt2tg fp32 | 50.0 (2.50) | 40.0 (4.00) | 3 of 3 |" in filled
    assert "| CTranslate2 int8 | 45.0 (2.25) | not measured | 0 of 3 |" in filled  # the faster of its libraries, once
    assert "| llama.cpp F16 | 40.0 (2.00) | no beam search | 3 of 3 |" in filled
    assert "A processor, 2 cores, 8.0 GiB. Medians of 3 runs in turn." in filled
    assert filled.count("old") == len(TABLES) - 1  # the others have no results
    assert filled.count("before ") == len(TABLES)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert path.with_suffix(".roof.png").read_bytes().startswith(b"\x89PNG")


def test_no_cell_of_a_table_is_blank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "decode.json").write_text(json.dumps(decode_results()), encoding="utf-8")
    path = page(tmp_path)
    run_chart(monkeypatch, tmp_path, path)
    cells = [cell for line in path.read_text(encoding="utf-8").splitlines() for cell in line.split("|")[1:-1]]
    assert len(cells) > 20
    assert all(cell.strip() for cell in cells)


def test_share_of_the_roof_by_hand() -> None:
    """gpt2 has 123.5 million weights: 494 MB in fp32, and 247 million operations for a token."""
    machine = {"bandwidth_gb_per_second": 49.4, "gflops": {"fp32": 247.0}}
    rival = {"bytes_per_weight": 4, "products": "fp32"}
    step = {"shape": "gpt2", "work": "greedy-1", "rows": 1, "prompt": 1, "new_tokens": 10}
    assert roof.share(step, rival, machine, 50.0) == pytest.approx(0.5, rel=0.01)  # memory allows 100 tokens a second
    many = {**step, "rows": 32}
    assert roof.share(many, rival, machine, 500.0) == pytest.approx(0.5, rel=0.01)  # arithmetic allows 1,000
    # A prefill computes logits for its last token alone: 85 million weights for the others.
    prefill = {**step, "prompt": 512, "new_tokens": 1}
    assert roof.share(prefill, rival, machine, 1000.0) == pytest.approx(1000 * 2 * 85.1e6 / 247e9, rel=0.01)


def test_company_table_says_what_stays() -> None:
    table = {"shape": "gpt2", "work": "greedy-8", "reasons": {"b": "died"}}
    table["rivals"] = {"gpt2tg-int8": speed(200.0, with_company={"median": 130.0})}
    told = {"run": {"repeats": 3}, "machine": MACHINE, "rivals": {"gpt2tg-int8": {}, "b": {}}, "results": [table]}
    text = chart.company_table(told)
    assert "| gpt2tg int8 | b |" in text
    assert "| 8 texts, greedy | 200.0 → 130.0 (65%) | died |" in text


def test_server_table_has_speed_and_memory() -> None:
    rows = [
        {"clients": 1, "server": "gpt2tg", "tokens_per_second": 1234.4, "first_p95": 0.0125},
        {"clients": 4, "server": "gpt2tg", "tokens_per_second": 2000.0, "first_p95": 0.5},
        {"clients": 4, "server": "other", "tokens_per_second": 100.0, "first_p95": 2.0},
    ]
    points = [
        {"requests": n, "seconds": 60.0 * n / 1000, "megabytes": 300.0 + n / 1000, "failed": 0}
        for n in (16, 5000, 9000)
    ]
    told = {"run": {"repeats": 3, "servers": ["gpt2tg", "other"]}, "machine": MACHINE, "results": rows}
    text = chart.serve_table({**told, "memory": {"gpt2tg": points}})
    assert "computed at most" not in text
    assert "at most 30% of a core" in chart.machine_line({**told, "most_computed_by_others": 0.3})
    assert "| 1 | 1,234 | 0.013 s | not measured | not measured |" in text
    assert "| 4 | 2,000 | 0.500 s | 100 | 2.000 s |" in text
    assert "gpt2tg had 300 MB after 16 requests, 305 MB after 5,000" in text
    assert "309 MB after 9,000, 9 minutes later" in text


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_bf16_is_left_out_where_it_would_be_fp32(monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool) -> None:
    monkeypatch.setattr(rivals.machine, "has_bfloat16", lambda: has_bfloat16)
    monkeypatch.setattr(rivals, "find_spec", lambda _: True)
    assert (rivals.missing("openvino-bf16") is None) is has_bfloat16
    assert rivals.missing("openvino-fp32") is None


def test_interrupted_run_goes_on_and_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "decode.json"
    told = {"run": {"rivals": ["a"]}, "gflops": {}}
    begun = results.begin(path, told, overwrite=False)
    assert begun == {**told, "results": []}
    results.save({**begun, "results": ["a table"]}, path)
    assert results.begin(path, told, overwrite=False)["results"] == ["a table"]
    assert results.begin(path, told, overwrite=True)["results"] == []
    with pytest.raises(SystemExit, match="holds a run with other settings"):
        results.begin(path, {"run": {"rivals": ["b"]}}, overwrite=False)
    with pytest.raises(SystemExit, match="holds a run of another machine"):
        results.begin(path, {**told, "machine": {"processor": "another"}}, overwrite=False)


def test_tables_that_the_results_hold_are_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.json"
    flags = [
        "--rivals",
        "gpt2tg-fp32",
        "--shape",
        "gpt2",
        "--work",
        "greedy-1",
        "--prompt",
        "16",
        "--output",
        str(path),
    ]
    monkeypatch.setattr(sys, "argv", ["decode.py", *flags, "--cache", str(tmp_path)])
    options = decode.parse()
    told = decode.describe(options, ["gpt2tg-fp32"])
    told["results"] = [{"shape": "gpt2", "work": "greedy-1", "prompt": 16, "rivals": {}}]
    results.save(told, path)
    decode.main()  # loads no rival
    assert json.loads(path.read_text(encoding="utf-8")) == told
    assert str(path) in capsys.readouterr().err


def test_first_token_is_timed_before_the_end() -> None:
    script = "import time; print('x', flush=True); time.sleep(0.3); print('y')"
    first, whole, megabytes = startup.measure([sys.executable, "-c", script])
    assert 0 < first < whole - 0.25
    assert 3 < megabytes < 1000
    with pytest.raises(SystemExit, match="no such luck"):
        startup.measure([sys.executable, "-c", "raise SystemExit('no such luck')"])


def test_a_page_without_a_place_for_a_table_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "decode.json").write_text(json.dumps(decode_results()), encoding="utf-8")
    path = tmp_path / "page.md"
    path.write_text("nothing", encoding="utf-8")
    with pytest.raises(SystemExit, match="has no place for decode"):
        run_chart(monkeypatch, tmp_path, path)
    assert path.read_text(encoding="utf-8") == "nothing"


def test_the_page_has_a_place_for_every_table() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    for name in TABLES:
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


@pytest.fixture
def training(model_dir: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    """Run one of the trainers of train.py for a few steps."""
    monkeypatch.setattr(train.machine, "cores", lambda: 1)
    settings = dict(model=str(model_dir), train_file=str(text_file), block_size=32, batch_size=1, steps=8)
    settings |= dict(bf16=False, fp16=False, gradient_checkpointing=False, compile="off", dropout=0.0, logging_steps=1)
    return lambda name, **given: train.run(Namespace(only=name, **settings | given))


@pytest.mark.filterwarnings("ignore:'pin_memory'")  # what the plain Trainer says at its defaults
def test_mixed_precision_is_compared_with_fp32_too(training: Callable[..., dict]) -> None:
    assert train.rivals(Namespace(bf16=True, fp16=False)) == ["gpt2tg", "plain Trainer", "plain Trainer fp32"]
    assert train.rivals(Namespace(bf16=False, fp16=False)) == ["gpt2tg", "plain Trainer"]
    rounded, exact = (training(name, bf16=True)["losses"] for name in ("plain Trainer", "plain Trainer fp32"))
    assert exact == training("plain Trainer")["losses"]
    assert 0 < train.largest_difference(rounded, exact) < 0.1


@pytest.mark.filterwarnings("ignore:'pin_memory'")
def test_both_trainers_reach_the_same_loss(training: Callable[..., dict]) -> None:
    ours, plain = training("gpt2tg"), training("plain Trainer")
    assert len(ours["losses"]) == 8
    assert ours["losses"] == pytest.approx(plain["losses"], abs=1e-3)
    assert ours["losses"][-1] != ours["losses"][0]
    assert min(ours["tokens_per_second"], plain["tokens_per_second"]) > 0
