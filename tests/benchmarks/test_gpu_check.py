"""gpu_check.py: its rehearsal on a CPU, what becomes of parts that fail or hang, and what it counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import chart
import gpu_check
import gpu_generation
import gpu_memory
import gpu_training
import pytest
import train
from gpu_check import Part
from gpu_results import Check, Rows

from gpt2tg.checkpoint.config import read_shape
from gpt2tg.checkpoint.find import BUNDLED_DIRECTORY
from gpt2tg.options import TrainingOptions
from gpt2tg.training.model.memory_estimate import estimate_memory

PROGRAM = Path(gpu_check.__file__)

# Parts as programs: the files of rows and the model cache are their arguments, as those of gpu_parts.py.
WORKS = """
import json, os, sys
row = {"what": "work", "value": 12.5, "unit": "tokens/s", "note": os.environ.get("GPT2TG_GRAPHS", "not set")}
open(sys.argv[2], "a").write(json.dumps(row) + "\\n")
"""
FAILS = WORKS + "raise ValueError('no kernel image | is available')"
HANGS = (
    WORKS
    + """
import subprocess, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(os.environ["CHILD"], "w").write(str(child.pid))
open(sys.argv[2], "a").write('{"what": "half a li')
time.sleep(60)
"""
)


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[dict, str, object]]:
    """Run gpu_check.py with other parts; return its JSON, its table and what it exited with."""

    def run(parts: list[Part], *flags: str) -> tuple[dict, str, object]:
        output = tmp_path / "output"
        monkeypatch.setattr(gpu_check, "PARTS", parts)
        monkeypatch.setattr(gpu_check.signal, "signal", lambda *_: None)
        monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--output", str(output), *flags])
        code: object = 0
        try:
            gpu_check.main()
        except SystemExit as error:
            code = error.code
        told = json.loads((output / "gpu-check.json").read_text(encoding="utf-8"))
        return told, (output / "gpu-check.md").read_text(encoding="utf-8"), code

    return run


@pytest.fixture
def planted(tmp_path: Path) -> Callable[..., Part]:
    """Return a part whose program has this source."""

    def plant(name: str, source: str, seconds: float = 60, **more: object) -> Part:
        path = tmp_path / f"{name}.py"
        path.write_text(source, encoding="utf-8")
        return Part(name, seconds, program=path, **more)  # type: ignore[arg-type]

    return plant


def outcomes(told: dict) -> dict[str, str]:
    return {part["name"]: part["outcome"] for part in told["parts"]}


def test_rehearsal_writes_json_and_table(forked_python: Path, tmp_path: Path) -> None:
    """As a user would run it: three parts with tiny models, whose greedy texts equal those of transformers."""
    names = ["machine", "graphs off", "transformers"]
    done = subprocess.run(
        [forked_python, str(PROGRAM), "--small", "--output", str(tmp_path), "--parts", *names],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "gpu-check.json").read_text(encoding="utf-8"))
    assert outcomes(told) == dict.fromkeys(["machine", "transformers", "graphs off"], "done")
    rows = {part["name"]: {row["what"]: row for row in part["rows"]} for part in told["parts"]}
    assert "torch" in rows["machine"]["versions"]["value"]
    greedy = rows["graphs off"]["greedy, 3 texts, prompt 4, 6 new"]
    assert greedy["agreement"] == {"equal_texts": 3, "texts": 3, "first_difference": None}
    theirs = rows["transformers"]["greedy, 3 texts, prompt 4, 6 new"]
    assert greedy["times_reference"] == pytest.approx(greedy["value"] / theirs["value"])
    assert {"beam, 1 text, prompt 4, 6 new", "top_p, 1 text, prompt 4, 6 new"} <= rows["graphs off"].keys()
    assert any(what.startswith("first token, 1 x ") for what in rows["transformers"])
    table = (tmp_path / "gpu-check.md").read_text(encoding="utf-8")
    assert table.strip() == done.stdout.strip()
    assert f"| graphs off | greedy, 3 texts, prompt 4, 6 new | {greedy['value']:,.0f} tokens/s |" in table
    assert {line.count("|") for line in table.splitlines() if line.startswith("|")} == {6}


def test_parts_that_fail_or_hang_are_reported_and_the_rest_runs(
    tmp_path: Path,
    check: Callable[..., tuple[dict, str, object]],
    planted: Callable[..., Part],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHILD", str(tmp_path / "child"))
    parts = [
        planted("fails", FAILS),
        planted("hangs", HANGS, seconds=2.0),
        planted("works", WORKS, environment={"GPT2TG_GRAPHS": "0"}),
    ]
    start = time.monotonic()
    told, table, code = check(parts)
    assert time.monotonic() - start < 30
    assert outcomes(told) == {"fails": "failed", "hangs": "timed out", "works": "done"}
    assert code == 1
    fails, hangs, works = told["parts"]
    assert [part["rows"][0]["value"] for part in told["parts"]] == [12.5] * 3  # what was measured before
    assert len(hangs["rows"]) == 1  # without the line that was cut
    assert "ValueError: no kernel image" in fails["error"]
    assert "| fails |  | failed |  | exit code 1: ValueError: no kernel image \\| is available |" in table
    assert "| hangs |  | timed out |  | stopped after 2 s |" in table
    assert works["rows"][0]["note"] == "0"
    assert ended(int((tmp_path / "child").read_text()))


def ended(process: int) -> bool:
    """Whether a process ends soon."""
    status = Path(f"/proc/{process}/status")
    for _ in range(100):
        if not status.exists() or "State:\tZ" in status.read_text(encoding="utf-8"):
            return True
        time.sleep(0.05)
    return False


def test_parts_beyond_the_budget_are_skipped(
    check: Callable[..., tuple[dict, str, object]], planted: Callable[..., Part]
) -> None:
    told, table, _ = check([planted("first", WORKS), planted("second", WORKS)], "--budget", "-1")
    assert outcomes(told) == {"first": "skipped", "second": "skipped"}
    assert "| second |  | skipped |  | no time left |" in table


def test_all_parts_are_given_less_than_eight_minutes() -> None:
    assert gpu_check.BUDGET <= 465  # what starts last is stopped at that time


def test_without_a_gpu_only_a_rehearsal_runs(
    check: Callable[..., tuple[dict, str, object]], planted: Callable[..., Part]
) -> None:
    source = WORKS.replace('"unit"', '"device": "cpu", "unit"')
    parts = [planted("machine", source), planted("next", WORKS)]
    told, _, code = check(parts)
    assert outcomes(told) == {"machine": "done"}
    assert "torch finds no CUDA GPU here" in str(code)
    assert outcomes(check(parts, "--small")[0]) == {"machine": "done", "next": "done"}


def test_unknown_part_is_refused(check: Callable[..., tuple[dict, str, object]]) -> None:
    with pytest.raises(SystemExit, match="--parts: speed: no such part"):
        gpu_check.chosen_parts(["speed"])


def test_program_needs_the_standard_library_alone() -> None:
    """On a machine where torch is broken, it says so instead of failing itself."""
    done = subprocess.run([sys.executable, "-S", str(PROGRAM), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_part_has_its_function() -> None:
    import gpu_parts

    assert {part.work or part.name for part in gpu_check.PARTS} == gpu_parts.PARTS.keys()


def test_speeds_and_times_are_compared_with_transformers() -> None:
    def part(is_reference: bool, *rows: tuple[str, float | None, str]) -> dict:
        told = [dict(zip(("what", "value", "unit"), row, strict=True), note="") for row in rows]
        return {"is_reference": is_reference, "rows": told}

    ours = part(False, ("greedy", 300.0, "tokens/s"), ("first token", 5.0, "ms"), ("beam", 1.0, "tokens/s"))
    theirs = part(True, ("greedy", 100.0, "tokens/s"), ("first token", 20.0, "ms"), ("beam", None, ""))
    gpu_check.compare([ours, theirs])
    assert [row.get("times_reference") for row in ours["rows"]] == [3.0, 4.0, None]


def test_failed_measurement_leaves_the_others(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows")
    for name in ("good", "bad", "better"):
        with rows.attempt(name):
            if name == "bad":
                raise RuntimeError("CUDA error: an illegal memory access\nmore lines")
            rows.add(name, 1.0)
    written = gpu_check.read_rows(tmp_path / "rows")
    assert [(row["what"], row["value"]) for row in written] == [("good", 1.0), ("bad", None), ("better", 1.0)]
    assert written[1]["note"] == "RuntimeError: CUDA error: an illegal memory access"
    assert gpu_check.has_failed({"outcome": "done", "rows": written})


@pytest.mark.filterwarnings("ignore:'pin_memory'")  # what the plain Trainer says at its defaults
def test_training_runs_of_both_trainers_are_comparable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both take the same steps, checkpointing included, and the loss of ours is that of transformers."""
    monkeypatch.setattr(gpu_training.formats, "checkpoint", lambda *_: BUNDLED_DIRECTORY)
    found = []
    for rival in ("gpt2tg", "plain Trainer"):
        rows = Rows(tmp_path / f"{rival} rows")
        cases = (gpu_training.Case("gpt2", 16, {"gradient_checkpointing": True, "dropout": 0.0}),)
        gpu_training.run_cases(Check(rows, tmp_path, True, "cpu"), cases, rival)
        found += gpu_check.read_rows(tmp_path / f"{rival} rows")
    ours, theirs = found
    assert ours["what"] == theirs["what"] == "gpt2, gradient_checkpointing, dropout 0.0, block_size 32, 2 blocks a step"
    assert min(ours["value"], theirs["value"]) > 0
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-3)


def test_captures_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Graph:
        def capture_begin(self, *given: object) -> None:
            pass

        def capture_end(self) -> None:
            time.sleep(0.01)

    monkeypatch.setattr(gpu_generation.torch.cuda, "CUDAGraph", Graph)
    with gpu_generation.counted_captures() as seconds:
        for _ in range(2):
            graph = Graph()
            graph.capture_begin("pool")
            graph.capture_end()
    assert len(seconds) == 2
    assert all(0.01 <= second < 1 for second in seconds)


def test_bandwidth_limit_of_a_gpu() -> None:
    """4.3 TB/s read gpt2's 124 million weights of 2 bytes 17,000 times per second, and gpt2-xl's 1,380 times."""
    assert gpu_generation.roof_of("gpt2", 1, 16, 4.3e12) == pytest.approx(17_300, rel=0.02)
    assert gpu_generation.roof_of("gpt2-xl", 1, 16, 4.3e12) == pytest.approx(1_380, rel=0.02)
    assert gpu_generation.roof_of("gpt2", 256, 510, 4.3e12) == pytest.approx(217_000, rel=0.02)


def test_model_flops_utilization_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """nanoGPT counts 6 x 124 million + 12 x 12 x 768 x 1,024 operations a token for gpt2 at block size 1,024."""
    gpt2 = SimpleNamespace(**vars(read_shape(BUNDLED_DIRECTORY)) | dict(n_embd=768, n_layer=12, vocab_size=50257))
    options = TrainingOptions(train_file="x", block_size=1024, batch_size=16, bf16=True)
    assert train.flops_per_token(gpt2, options) == pytest.approx(6 * 123.6e6 + 12 * 12 * 768 * 1024, rel=1e-3)
    lora = TrainingOptions(train_file="x", block_size=1024, lora=True)
    assert train.flops_per_token(gpt2, lora) == pytest.approx(4 * 123.6e6 + 12 * 12 * 768 * 1024, rel=1e-3)


def test_figures_of_a_gpu_have_memory_and_utilization(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(train.torch.cuda, "max_memory_allocated", lambda: 23.4e9)
    monkeypatch.setattr(train.torch.cuda, "get_device_name", lambda: "NVIDIA A100-SXM4-80GB")
    clock = train.Clock()
    clock.ends = [0.0, 1.0, 2.0, 3.0, 4.0, 4.5, 5.0]  # two steps a second after the warm-up
    options = TrainingOptions(train_file="x", block_size=128, batch_size=4, fp16=True)
    found = train.figures(options, "gpt2-tiny", clock)
    assert found["tokens_per_second"] == 2 * 4 * 128
    expected = train.flops_per_token(read_shape(BUNDLED_DIRECTORY), options) * 1024 / 312e12
    assert found["utilization"] == pytest.approx(expected)
    assert f"peak 23.4 GB, --dry_run estimates {found['estimated_gb']:.1f} GB" in train.described(found)


# ---- docs/gpu.md ----


def test_tables_of_the_page_are_current() -> None:
    """If not: python benchmarks/gpu_memory.py"""
    page = gpu_memory.PAGE.read_text(encoding="utf-8")
    for name, lines in gpu_memory.tables().items():
        assert chart.fill(page, name, "\n".join(lines)) == page


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "lora"])
@pytest.mark.parametrize("card", gpu_memory.CARDS, ids=lambda card: card.name)
def test_settings_of_the_page_fit_and_a_larger_batch_would_not(card: gpu_memory.Card, lora: bool) -> None:
    for shape in gpu_memory.MODELS.values():
        options = gpu_memory.fitting(card, shape, lora)
        if options is None:
            assert (card.gigabytes, shape.n_layer, lora) == (16, 48, False)  # all of gpt2-xl on a T4
            continue
        assert estimate_memory(shape, options).peak < 0.9 * card.gigabytes * 1e9
        assert options.batch_size * options.gradient_accumulation_steps == 32
        assert options.fp16 is (card.gigabytes == 16)  # a T4 has no bf16
        if options.batch_size < 32:
            doubled = replace(options, batch_size=2 * options.batch_size)
            assert estimate_memory(shape, doubled).peak > 0.9 * card.gigabytes * 1e9


def test_speed_by_arithmetic_agrees_with_what_nanogpt_published() -> None:
    """107,000 tokens/s of gpt2 at block size 1,024 on an A100."""
    (a100,) = (card for card in gpu_memory.CARDS if card.name.startswith("A100"))
    shape = gpu_memory.MODELS["gpt2"]
    options = gpu_memory.fitting(a100, shape, lora=False)
    speed = gpu_memory.cells(a100, shape, options)[2]
    assert int(speed.replace(",", "")) == pytest.approx(train.NANOGPT_A100, rel=0.05)
