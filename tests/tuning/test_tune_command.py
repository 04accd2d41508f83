"""--tune from the command line: table, report, and the settings that --apply saves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from trial_clock import TEXT, Clock

import text_generation_demo
from gpt2tg.checkpoint.file_names import GENERATION_CONFIG
from gpt2tg.checkpoint.tuned_settings import read_tuned_settings
from gpt2tg.training.output.durable import seal
from gpt2tg.tuning import held_out

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def words(model_dir: Path, tmp_path: Path) -> list[str]:
    text, model = tmp_path / "held_out.txt", tmp_path / "model"
    text.write_text(TEXT, encoding="utf-8")
    shutil.copytree(model_dir, model)
    return [
        "--model_path", str(model), "--tune", "--reference", str(text), "--examples", "file", "--max_new_tokens", "8",
        "--budget", "16", "--seed", "1", "--num_prompts", "16",
    ]  # fmt: skip


def set_gain_interval(monkeypatch: pytest.MonkeyPatch, low: float, high: float) -> None:
    """Have the search end with this interval of the gain."""
    Clock().replace_the_real_one(monkeypatch)
    monkeypatch.setattr(held_out, "gain_interval", lambda *_: (low, high))


def test_checkpoint_is_unchanged_without_apply(
    words: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_gain_interval(monkeypatch, 0.1, 0.9)
    before = (tmp_path / "model" / GENERATION_CONFIG).read_bytes()
    page = tmp_path / "report.html"
    assert text_generation_demo.main([*words, "--report", str(page)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[1].startswith("default")
    assert err.splitlines()[1] == "measuring the reference; then settings are tried and the best checked, in 16 s"
    assert "--apply saves them in the checkpoint" in err
    assert (tmp_path / "model" / GENERATION_CONFIG).read_bytes() == before
    html = page.read_text(encoding="utf-8")
    assert "Distance by temperature and top-p" in html
    assert "Distance from human text by temperature and top-p" in html


def test_apply_needs_a_clear_gain(
    words: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_gain_interval(monkeypatch, -0.1, 0.9)
    before = (tmp_path / "model" / GENERATION_CONFIG).read_bytes()
    assert text_generation_demo.main([*words, "--apply"]) == 0
    out, err = capsys.readouterr()
    assert "No clear gain: " in out
    assert "--apply leaves the checkpoint as it is\nto write with the settings found: --" in err
    assert "makes them the checkpoint's own" not in err
    assert (tmp_path / "model" / GENERATION_CONFIG).read_bytes() == before


def test_applied_settings_are_the_printed_ones(
    words: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_gain_interval(monkeypatch, 0.1, 0.9)
    assert text_generation_demo.main([*words, "--apply"]) == 0
    out, err = capsys.readouterr()
    found = read_tuned_settings(tmp_path / "model")
    assert out.splitlines()[2].split()[1] == f"{found['temperature']:g}"
    assert f"{tmp_path / 'model' / GENERATION_CONFIG} now has --" in err
    assert json.loads((tmp_path / "model" / GENERATION_CONFIG).read_text())["eos_token_id"] == 0


def test_chosen_checkpoint_is_tuned(
    words: list[str], tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_gain_interval(monkeypatch, 0.1, 0.9)
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
def test_invalid_flags_give_one_line(flags: list[str], message: str, capsys: Capture) -> None:
    assert text_generation_demo.main(["--model_name", "gpt2-tiny", *flags]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err


def test_unused_flags_give_notices(words: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock().replace_the_real_one(monkeypatch)
    assert text_generation_demo.main([*words, "--temperature", "0.3", "--decoding", "beam", "--compare"]) == 0
    err = capsys.readouterr().err
    for flag in ("--temperature", "--decoding", "--compare"):
        assert f"{flag} is not used: --tune " in err
