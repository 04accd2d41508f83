"""The help of the four scripts: short, complete, of one task, and shown without loading torch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import finetune_gpt2
import generate_from_finetuned
import gpt2_text_generation
import text_generation_demo

ROOT = Path(__file__).parents[2]
SCRIPTS = [finetune_gpt2, generate_from_finetuned, gpt2_text_generation, text_generation_demo]
TASKS = ["train", "generate", "evaluate"]

Capture = pytest.CaptureFixture[str]


def shown(capsys: Capture, script: ModuleType, *words: str) -> str:
    """The help that a script prints for these words."""
    with pytest.raises(SystemExit) as end:
        script.main(list(words))
    assert end.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def flags_in(text: str) -> list[str]:
    """The flags that a help text describes, without those of every script."""
    found = re.findall(r"^  (--\w+)", text, re.MULTILINE)
    return [name for name in found if name not in ("--help", "--version", "--debug", "--config", "--save_config")]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
@pytest.mark.parametrize("word", ["--help", "--help-all", "-h"])
def test_help_needs_neither_torch_nor_transformers(script: ModuleType, word: str) -> None:
    code = (
        f"import sys, {script.__name__} as s\n"
        f"try: s.main(['{word}'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'tokenizers', 'numpy', 'tqdm'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert "examples:" in result.stdout
    assert "gpt2-xl" in result.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_help_is_short_and_names_help_all(script: ModuleType, capsys: Capture) -> None:
    short, everything = shown(capsys, script, "--help"), shown(capsys, script, "--help-all")
    assert 14 <= len(flags_in(short)) <= 22
    assert set(flags_in(short)) < set(flags_in(everything))
    assert f"{len(flags_in(short))} of {len(flags_in(everything))} flags are shown; --help-all shows all." in short
    assert "flags are shown" not in everything


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_help_all_shows_every_flag_once_with_its_default(script: ModuleType, capsys: Capture) -> None:
    text = shown(capsys, script, "--help-all")
    parser = script.parser()
    assert sorted(flags_in(text)) == sorted(flag.name for flag in parser.flags())
    with_value = [flag for flag in parser.flags() if flag.kind is not bool]
    words = " ".join(text.split())
    assert len(re.findall(r"\((?:default: |required)", words)) >= len(with_value)


@pytest.mark.parametrize("word", ["--help_all", "--help-all"])
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("task", TASKS)
def test_help_of_a_task_shows_its_flags_alone(task: str, order: int, word: str, capsys: Capture) -> None:
    words = [["--task", task], [word]][::order]
    text = shown(capsys, gpt2_text_generation, *words[0], *words[1])
    flags = gpt2_text_generation.parser().flags(task)
    assert sorted(flags_in(text)) == sorted(flag.name for flag in flags)
    assert "with --task" not in text
    present, absent = {
        "train": ("peak learning rate (default: 5e-05)", "--top_k"),
        "generate": ("keep the N most probable tokens", "--epochs"),
        "evaluate": ("--stride N", "--decoding"),
    }[task]
    assert present in " ".join(text.split())
    assert absent not in flags_in(text)


@pytest.mark.parametrize("task", TASKS)
def test_short_help_of_a_task_is_part_of_the_full_one(task: str, capsys: Capture) -> None:
    text = shown(capsys, gpt2_text_generation, "--task", task, "--help")
    assert len(flags_in(text)) <= 20
    assert set(flags_in(text)) < {flag.name for flag in gpt2_text_generation.parser().flags(task)}
    assert f"--task {task} --help-all shows all." in text


def test_flag_that_two_tasks_share_is_described_for_each(capsys: Capture) -> None:
    text = " ".join(shown(capsys, gpt2_text_generation, "--help-all").split())
    assert "does not change the texts (default: 8); with --task train: batch size: blocks per forward pass (def" in text
    assert "(required with --task evaluate)" in text
    assert "--task train|generate|evaluate what to do (required)" in text


def test_help_of_an_unknown_task_is_that_of_all_tasks(capsys: Capture) -> None:
    text = shown(capsys, gpt2_text_generation, "--task", "sing", "--help")
    assert text == shown(capsys, gpt2_text_generation, "--help")
    assert "--task generate --help shows the flags of that task" in text


@pytest.mark.parametrize("columns", ["70", "80", "110", "300"])
def test_help_fits_the_terminal(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    text = finetune_gpt2.parser().format_help(everything=True)
    described = text[text.index("options:") : text.index("examples:")].splitlines()
    assert max(map(len, described)) <= min(int(columns), 110)


def test_version(capsys: Capture) -> None:
    assert re.fullmatch(r"gpt2tg \d+\.\d+\.\d+\n", shown(capsys, finetune_gpt2, "--train_file", "x", "--version"))
