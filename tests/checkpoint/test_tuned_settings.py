"""Settings that `--tune --apply` saves in a checkpoint, and what uses them."""

from __future__ import annotations

import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import GenerationConfig

import generate_from_finetuned
import text_generation_demo
from gpt2tg.checkpoint.file_names import GENERATION_CONFIG
from gpt2tg.checkpoint.tuned_settings import as_flags, read_tuned_settings, tunable_settings, write_tuned_settings
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import load, load_checkpoint
from gpt2tg.options import STRATEGIES, DecodingOptions
from gpt2tg.session import Front, Session
from gpt2tg.session.loop import answer
from gpt2tg.training.output.durable import find_damage, seal

Capture = pytest.CaptureFixture[str]

TUNED = DecodingOptions(decoding="top_p", temperature=1.1, top_p=0.85, min_p=0.02, no_repeat_ngram=3)


@pytest.fixture
def tuned_dir(model_dir: Path, tmp_path: Path) -> Path:
    """A checkpoint with tuned settings."""
    directory = tmp_path / "tuned"
    shutil.copytree(model_dir, directory)
    write_tuned_settings(directory, TUNED)
    return directory


def generated(directory: Path, capsys: Capture, *flags: str) -> tuple[str, str]:
    """Generate; return stdout, and the lines of stderr about the checkpoint."""
    command = ["--model_path", str(directory), "--prompt", "The fox", "--max_new_tokens", "12", "--seed", "3", *flags]
    assert generate_from_finetuned.main([*command, "--num_sequences", "1"]) == 0
    out, err = capsys.readouterr()
    return out, "\n".join(line for line in err.splitlines() if "checkpoint" in line)


SPELLED_OUT = ["--temperature", "1.1", "--top_p", "0.85", "--min_p", "0.02", "--no_repeat_ngram", "3"]


def test_settings_are_read_as_they_were_written(tuned_dir: Path) -> None:
    found = read_tuned_settings(tuned_dir)
    assert found == {
        "decoding": "top_p", "temperature": 1.1, "top_p": 0.85, "min_p": 0.02, "repetition_penalty": 1.0,
        "no_repeat_ngram": 3,
    }  # fmt: skip
    assert DecodingOptions(**found) == TUNED
    assert as_flags(tunable_settings(TUNED)) == "--temperature 1.1 --top_p 0.85 --min_p 0.02 --no_repeat_ngram 3"


def test_transformers_reads_the_same_settings(tuned_dir: Path) -> None:
    config = GenerationConfig.from_pretrained(tuned_dir)
    read = (config.do_sample, config.temperature, config.top_p, config.top_k, config.min_p, config.no_repeat_ngram_size)
    assert read == (True, 1.1, 0.85, 0, 0.02, 3)


def test_other_entries_of_the_file_stay(tuned_dir: Path, model_dir: Path) -> None:
    before = json.loads((model_dir / GENERATION_CONFIG).read_text())
    after = json.loads((tuned_dir / GENERATION_CONFIG).read_text())
    assert before["eos_token_id"] == after["eos_token_id"] == 0
    assert before.items() <= after.items()


def test_training_still_resumes_from_the_checkpoint(tuned_dir: Path) -> None:
    """The manifest has to record the new file: any other file counts as damage."""
    seal(tuned_dir, {"step": 3})
    write_tuned_settings(tuned_dir, DecodingOptions(decoding="top_p", temperature=0.9))
    assert find_damage(tuned_dir) is None
    assert json.loads((tuned_dir / "manifest.json").read_text())["step"] == 3


def test_generation_uses_and_prints_them(tuned_dir: Path, model_dir: Path, capsys: Capture) -> None:
    out, said = generated(tuned_dir, capsys)
    assert said == (
        "settings of the checkpoint, found by --tune: --temperature 1.1 --top_p 0.85 --min_p 0.02 --no_repeat_ngram 3"
    )
    assert out == generated(model_dir, capsys, *SPELLED_OUT)[0]
    assert out != generated(model_dir, capsys)[0]


def test_flags_take_precedence(tuned_dir: Path, model_dir: Path, capsys: Capture) -> None:
    out, said = generated(tuned_dir, capsys, "--temperature", "0.5", "--no_repeat_ngram", "0")
    assert said.endswith(": --top_p 0.85 --min_p 0.02")
    same = ["--temperature", "0.5", "--top_p", "0.85", "--min_p", "0.02"]
    assert out == generated(model_dir, capsys, *same)[0]


def test_another_strategy_ignores_them(tuned_dir: Path, model_dir: Path, capsys: Capture) -> None:
    out, said = generated(tuned_dir, capsys, "--decoding", "greedy")
    assert said == ""
    assert out == generated(model_dir, capsys, "--decoding", "greedy")[0]


def test_settings_that_others_wrote_change_nothing(model_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    """Guarantee 7: a generation_config.json that came with a model overrides nothing."""
    directory = tmp_path / "foreign"
    shutil.copytree(model_dir, directory)
    config = json.loads((directory / GENERATION_CONFIG).read_text()) | {
        "temperature": 1.9,
        "top_p": 0.3,
        "do_sample": True,
    }
    (directory / GENERATION_CONFIG).write_text(json.dumps(config))
    assert read_tuned_settings(directory) == {}
    assert generated(directory, capsys) == generated(model_dir, capsys)


def test_session_uses_them(tuned_dir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("The fox\n"))
    assert text_generation_demo.main(["--model_path", str(tuned_dir), "--seed", "3", "--max_new_tokens", "12"]) == 0
    out, err = capsys.readouterr()
    assert "settings of the checkpoint, found by --tune: --temperature 1.1" in err
    assert out.strip() == generated(tuned_dir, capsys)[0].strip()


@pytest.fixture
def session(model_dir: Path) -> Session:
    """A session with a model without tuned settings."""
    options = DecodingOptions(num_sequences=1, seed=3, max_new_tokens=12)
    front = Front(read=input, write=lambda _: None, say=lambda _: None)
    return Session(load(str(model_dir)), options, str(model_dir), front, load_checkpoint)


def said_to(session: Session, *lines: str) -> list[str]:
    """Return what the session prints about these lines."""
    said: list[str] = []
    session.front = replace(session.front, say=said.append)
    for line in lines:
        answer(session, line)
    return said


def test_another_model_of_a_session_has_its_own_settings(session: Session, tuned_dir: Path, model_dir: Path) -> None:
    said = said_to(session, f"/model {tuned_dir}")
    assert said == [
        "settings of the checkpoint, found by --tune: temperature=1.1 top_p=0.85 min_p=0.02 no_repeat_ngram=3",
        f"{tuned_dir} on cpu, fp32, decoding=top_p temperature=1.1 top_p=0.85 min_p=0.02 seed=3 no_repeat_ngram=3 "
        "max_new_tokens=12",
    ]
    assert said_to(session, f"/model {model_dir}") == [  # and takes them away again
        f"{model_dir} on cpu, fp32, decoding=top_p temperature=0.7 top_p=0.9 seed=3 max_new_tokens=12"
    ]


def test_settings_chosen_in_a_session_stay(session: Session, tuned_dir: Path, model_dir: Path) -> None:
    """Even those that were set to the value they had."""
    said = said_to(session, "/set temperature=0.7 min_p=off", f"/model {tuned_dir}")
    assert said[1] == "settings of the checkpoint, found by --tune: top_p=0.85 no_repeat_ngram=3"
    assert (session.options.temperature, session.options.min_p, session.options.top_p) == (0.7, None, 0.85)
    said_to(session, "/set top_p=0.5", f"/model {model_dir}")
    assert (session.options.top_p, session.options.no_repeat_ngram) == (0.5, 0)
    said = said_to(session, "/decoding sample", f"/model {tuned_dir}")
    assert len(said) == 2
    assert session.options.no_repeat_ngram == 0


def test_loaded_session_drops_them_with_its_model(
    session: Session, tuned_dir: Path, model_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "story.jsonl"
    said_to(session, f"/model {tuned_dir}", "/set top_p=0.5", f"/save {file}", f"/model {model_dir}", f"/load {file}")
    now = session.options
    assert (now.temperature, now.top_p, now.min_p, now.no_repeat_ngram) == (1.1, 0.5, 0.02, 3)
    said_to(session, f"/model {model_dir}")
    now = session.options
    assert (now.temperature, now.top_p, now.min_p, now.no_repeat_ngram) == (0.7, 0.5, None, 0)


def test_model_that_cannot_be_loaded_changes_nothing(session: Session, tuned_dir: Path) -> None:
    before = session.options
    (tuned_dir / "model.safetensors").write_bytes(b"cut")
    said = said_to(session, f"/model {tuned_dir}")
    assert len(said) == 1
    assert said[0].startswith("error: ")
    assert session.options == before


def test_flags_stay_with_another_model_of_a_session(
    tuned_dir: Path, model_dir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"/model {model_dir}\n/show\n/model {tuned_dir}\n/show\n"))
    assert text_generation_demo.main(["--model_path", str(tuned_dir), "--seed", "3", "--top_p", "0.8"]) == 0
    shown = [line for line in capsys.readouterr().err.splitlines() if "decoding=top_p" in line]
    settings = [line.split("fp32, ")[1].removesuffix(" max_new_tokens=32") for line in shown]
    assert settings[0] == settings[1] == "decoding=top_p temperature=0.7 top_p=0.8 seed=3"
    assert settings[2] == "decoding=top_p temperature=1.1 top_p=0.8 min_p=0.02 seed=3 no_repeat_ngram=3"


def test_comparison_shows_them_beside_the_strategies(tuned_dir: Path, capsys: Capture) -> None:
    command = ["--model_path", str(tuned_dir), "--compare", "--prompt", "The fox", "--max_new_tokens", "4"]
    assert text_generation_demo.main([*command, "--num_sequences", "1", "--seed", "3"]) == 0
    out, err = capsys.readouterr()
    headings = [line.split(":")[0].removeprefix("=== ") for line in out.splitlines() if line.startswith("===")]
    assert headings == [*STRATEGIES, "top_p temperature=1.1 top_p=0.85 min_p=0.02 no_repeat_ngram=3"]
    assert "settings of the checkpoint, found by --tune" in err


def test_chosen_checkpoint_has_its_own_settings(
    tuned_dir: Path, model_dir: Path, tmp_path: Path, capsys: Capture
) -> None:
    """And does not use those of the model in the output directory itself."""
    run = tmp_path / "run"
    shutil.copytree(model_dir, run)
    shutil.copytree(tuned_dir, run / "checkpoint-5")
    seal(run / "checkpoint-5", {"step": 5})
    assert generated(run, capsys)[1] == ""
    out, said = generated(run, capsys, "--checkpoint", "5")
    assert "--temperature 1.1" in said
    assert out == generated(tuned_dir, capsys)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": "hot"}, "temperature is hot, expected a number"),
        ({"top_p": 1.5}, "top_p 1.5 is out of range"),
        ({"no_repeat_ngram_size": True}, "no_repeat_ngram_size is True, expected a number"),
        ({"gpt2tg": {"decoding": "magic"}}, "decoding magic is unknown"),
        ({"gpt2tg": {"settings": ["max_time"]}}, "max_time is no tuned setting"),
    ],
)
def test_broken_settings_are_refused_by_name(tuned_dir: Path, change: dict[str, object], message: str) -> None:
    config = json.loads((tuned_dir / GENERATION_CONFIG).read_text()) | change
    (tuned_dir / GENERATION_CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match=message) as caught:
        read_tuned_settings(tuned_dir)
    assert GENERATION_CONFIG in str(caught.value)
    assert "correct it, or remove the entry gpt2tg" in str(caught.value)
