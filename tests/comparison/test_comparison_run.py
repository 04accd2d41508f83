"""--compare from the command line: texts, table and files."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

import text_generation_demo
from gpt2tg.options import STRATEGIES

Capture = pytest.CaptureFixture[str]


def words(model_dir: Path, *rest: str) -> list[str]:
    return ["--model_path", str(model_dir), "--compare", "--max_new_tokens", "10", "--seed", "3", *rest]


def test_all_strategies_are_printed_with_texts_and_metrics(model_dir: Path, capsys: Capture) -> None:
    assert text_generation_demo.main(words(model_dir, "--prompt", "The fox")) == 0
    out, err = capsys.readouterr()
    headings = [line.split(":")[0] for line in out.splitlines() if line.startswith("=== ")]
    assert headings == [f"=== {name}" for name in STRATEGIES]
    assert out.count("The fox") == 1 + 3 + 3 + 3 + 3 + 3 + 3 + 1
    assert "perplexity" in out
    assert err == "seed 3\n"


@pytest.mark.parametrize("ending", ["json", "csv", "md"])
def test_output_file_has_texts_and_is_not_overwritten(
    model_dir: Path, tmp_path: Path, capsys: Capture, ending: str
) -> None:
    path = tmp_path / f"out.{ending}"
    command = words(model_dir, "--prompt", "The fox", "--strategies", "greedy,sample", "--output", str(path))
    assert text_generation_demo.main(command) == 0
    content = path.read_text(encoding="utf-8")
    assert "greedy" in content
    out, err = capsys.readouterr()
    assert "The fox" not in out  # with a file, the texts are not printed
    assert err.splitlines() == ["seed 3", "greedy: 1 text", "sample: 3 texts"]
    if ending == "json":
        assert json.loads(content)["seed"] == 3
    assert text_generation_demo.main(command) == 2
    assert "exists already" in capsys.readouterr().err
    assert text_generation_demo.main([*command, "--overwrite"]) == 0


def test_reference_and_train_file_flags(model_dir: Path, tmp_path: Path, text_file: Path, capsys: Capture) -> None:
    files = ["--reference", str(text_file), "--examples", "file", "--train_file", str(text_file)]
    path = tmp_path / "out.json"
    command = words(model_dir, *files, "--strategies", "sample", "--num_prompts", "2", "--output", str(path))
    assert text_generation_demo.main(command) == 0
    found = json.loads(path.read_text(encoding="utf-8"))
    assert len(found["prompts"]) == 2
    assert all(prompt.split()[0] in ("The", "A", "Two", "Nobody", "An") for prompt in found["prompts"])
    assert all(text["copied"] >= 1 for text in found["human"]["texts"])
    assert "human text" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--strategies", "magic"], "--strategies magic is unknown"),
        (
            ["--output", "out.txt"],
            "--output out.txt has an unknown format: give a file name that ends in .json or",
        ),
        (["--report", "report.pdf"], "--report report.pdf has an unknown format: give a file name that ends in .html"),
        (["--report", "no/where/report.html"], "give a file in a directory that exists"),
        (["--reference", "nowhere.txt"], "--reference nowhere.txt cannot be read"),
        (["--train_file", "nowhere.txt"], "--train_file nowhere.txt cannot be read"),
        (["--num_prompts", "0"], "--num_prompts 0 is out of range"),
    ],
)
def test_invalid_flags_fail_before_the_model_is_loaded(flags: list[str], message: str, capsys: Capture) -> None:
    assert text_generation_demo.main(["--model_path", "no_model", "--compare", *flags]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err


def test_comparison_flags_without_compare_give_notices(
    model_dir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    flags = ["--reference", "human.txt", "--prompts_file", "prompts.txt", "--output", "out.md", "--budget", "3"]
    assert text_generation_demo.main(["--model_path", str(model_dir), *flags]) == 0
    err = capsys.readouterr().err
    for flag in flags[::2]:
        assert f"{flag} is not used: it does nothing without --compare or --tune" in err
    assert text_generation_demo.main(words(model_dir, "--prompt", "The fox", "--strategies", "greedy", "--apply")) == 0
    assert "--apply is not used: it does nothing without --tune" in capsys.readouterr().err
