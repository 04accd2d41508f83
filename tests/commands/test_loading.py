"""The model is resolved once and loaded once, whichever command uses it."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import pytest

import generate_from_finetuned
import gpt2_text_generation
import text_generation_demo
from gpt2tg.checkpoint import checkpoint as resolving
from gpt2tg.checkpoint.find import find_directory
from gpt2tg.commands.loading import ModelChoice, start_loading
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import load
from gpt2tg.options import DecodingOptions

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that are resolved to a directory."""
    names: list[str] = []

    def find(name: str, option: str = "model_name", revision: str | None = None) -> Path:
        names.append(name)
        return find_directory(name, option, revision)

    monkeypatch.setattr(resolving, "find_directory", find)
    return names


def test_generation_resolves_the_model_once(model_dir: Path, resolved: list[str]) -> None:
    words = ["--model_path", str(model_dir), "--prompt", "The fox", "--max_new_tokens", "2"]
    assert generate_from_finetuned.main(words) == 0
    assert resolved == [str(model_dir)]


@pytest.mark.parametrize("flags", [["--score", "lines"], ["--candidates", "2"]], ids=lambda flags: flags[0])
def test_inspection_resolves_the_model_once(
    model_dir: Path, tmp_path: Path, resolved: list[str], flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lines").write_text("The owl\n")
    assert generate_from_finetuned.main(["--model_path", str(model_dir), *flags]) == 0
    assert resolved == [str(model_dir)]


def test_evaluation_resolves_the_model_once(model_dir: Path, text_file: Path, resolved: list[str]) -> None:
    words = ["--task", "evaluate", "--model_name", str(model_dir), "--eval_file", str(text_file)]
    assert gpt2_text_generation.main(words) == 0
    assert resolved == [str(model_dir)]


def test_session_resolves_each_model_once(
    model_dir: Path, tmp_path: Path, resolved: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shutil.copytree(model_dir, tmp_path / "other")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"/model {other}\n"))
    assert text_generation_demo.main(["--model_path", str(model_dir)]) == 0
    assert resolved == [str(model_dir), str(other)]


def test_python_api_resolves_the_model_once(model_dir: Path, resolved: list[str]) -> None:
    load(str(model_dir))
    assert resolved == [str(model_dir)]


def test_chosen_checkpoint_is_printed_and_loaded(model_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    chosen = shutil.copytree(model_dir, tmp_path / "run" / "checkpoint-5")
    loading = start_loading(ModelChoice(str(tmp_path / "run"), "model_path", "last"))
    assert capsys.readouterr().err == f"model: {chosen}\n"
    assert loading.checkpoint.directory == chosen
    assert loading.finish().generate("The fox", DecodingOptions(decoding="greedy", max_new_tokens=2))


def test_wrong_name_is_refused_with_its_flag(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no model") as caught:
        start_loading(ModelChoice(str(tmp_path), "model_path"))
    assert caught.value.option == "model_path"
