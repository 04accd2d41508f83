"""The words of a command line: values that look like flags, text in any locale, escapes that are typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import finetune_gpt2
import generate_from_finetuned
from gpt2tg.batch.prompts import read_prompts
from gpt2tg.engine.cpu import kernels
from gpt2tg.errors import UserError
from gpt2tg.options import PromptOptions, decoding_options

ROOT = Path(__file__).parents[2]

Capture = pytest.CaptureFixture[str]


def parsed(*words: str) -> dict[str, Any]:
    return generate_from_finetuned.parser().parse(words)


@pytest.mark.parametrize(
    "value", ["---", "-The", "--stop", "--", "-", "-h", "--the-end", "-1e-1", "a=b", "--x=y z", " "]
)
@pytest.mark.parametrize("joined", [False, True])
def test_any_word_can_be_the_value_of_a_flag(value: str, joined: bool) -> None:
    for name, expected in (("prompt", value), ("output", value), ("stop", (value,)), ("ban_words", (value,))):
        words = [f"--{name}={value}"] if joined else [f"--{name}", value]
        assert parsed(*words, "--seed", "3") == {name: expected, "seed": 3}


@pytest.mark.parametrize("number", ["-1e-1", "-.5", "-1E5", "-0", "-5", "+2.5e0"])
def test_negative_numbers_in_any_spelling(number: str) -> None:
    assert parsed("--presence_penalty", number, "--frequency-penalty", number) == {
        "presence_penalty": float(number),
        "frequency_penalty": float(number),
    }


@pytest.mark.parametrize("flag", ["--presence_penalty", "--length_penalty", "--temperature", "--max_time"])
@pytest.mark.parametrize("value", ["-inf", "-nan", "inf"])
def test_number_that_is_not_finite_is_out_of_range(flag: str, value: str, capsys: Capture) -> None:
    assert generate_from_finetuned.main(["--model_path", "nowhere", flag, value]) == 2
    err = capsys.readouterr().err
    assert f"error: {flag} {float(value)} is out of range" in err
    assert err.count("\n") == 1


def test_several_values_end_at_the_next_flag() -> None:
    words = ["--stop", "---", "-The", "END", "--ban-words", "--", "x", "--keep-stop", "--stop", "more", "--seed=1"]
    assert parsed(*words) == {
        "stop": ("---", "-The", "END", "more"),
        "ban_words": ("--", "x"),
        "keep_stop": True,
        "seed": 1,
    }


def test_mistyped_flag_after_several_values_is_refused() -> None:
    with pytest.raises(UserError, match=r"unrecognized argument --temprature; did you mean --temperature\?"):
        parsed("--stop", "END", "--temprature", "1")


def test_optional_value_may_be_left_out() -> None:
    assert parsed("--early_stopping", "--seed", "1") == {"early_stopping": "true", "seed": 1}
    assert parsed("--early_stopping", "never") == parsed("--early-stopping=never") == {"early_stopping": "never"}


def test_flag_that_is_read_as_a_value_is_noticed(capsys: Capture) -> None:
    assert parsed("--prompt", "--seed") == {"prompt": "--seed"}
    assert capsys.readouterr().err == "--prompt: --seed is read as its value\n"


@pytest.mark.parametrize("word", ["--keep_stop=yes", "--debug=1"])
def test_switch_with_a_value_is_refused(word: str) -> None:
    with pytest.raises(UserError, match="takes no value"):
        parsed(word)


@pytest.mark.parametrize("word", ["--see", "--promp", "--num", "-prompt", "--model-p=x"])
def test_flags_cannot_be_abbreviated(word: str) -> None:
    with pytest.raises(UserError, match="unrecognized argument"):
        parsed(word, "1")


@pytest.mark.parametrize("name", ["model_path", "output", "prompts_file", "score", "device", "decoding", "replay"])
def test_empty_name_is_refused_with_its_flag(name: str, capsys: Capture) -> None:
    assert generate_from_finetuned.main([f"--{name}", ""]) == 2
    assert f"error: --{name} is empty" in capsys.readouterr().err


def test_empty_prompt_is_accepted() -> None:
    assert parsed("--prompt", "") == parsed("--prompt=") == {"prompt": ""}


@pytest.mark.parametrize("flag", ["--stop", "--ban_words"])
def test_empty_strings_in_lists_are_refused(flag: str, capsys: Capture) -> None:
    assert generate_from_finetuned.main(["--model_path", "nowhere", flag, ""]) == 2
    assert f"error: {flag} needs" in capsys.readouterr().err


# --- escapes that are typed ------------------------------------------------------------------------------------------


def test_typed_escapes_are_read_in_texts(capsys: Capture) -> None:
    words = ["--prompt", r"A\nB\\nC\x", "--stop", r"\n", r"\t", "--ban_words", r"\n\n", "--bias", r"\n=-2"]
    assert parsed(*words) == {
        "prompt": "A\nB\\nC\\x",
        "stop": ("\n", "\t"),
        "ban_words": ("\n\n",),
        "bias": ("\n=-2",),
    }
    assert capsys.readouterr().err.startswith(r"--prompt: \n is read as a line break")


def test_backslash_in_a_file_name_is_kept(capsys: Capture) -> None:
    assert parsed("--output", r"C:\new\tale.txt") == {"output": r"C:\new\tale.txt"}
    assert capsys.readouterr().err == ""


def test_escapes_are_read_in_the_prompt_of_samples() -> None:
    assert finetune_gpt2.parser().parse(["--prompt", r"A\nB"]) == {"prompt": "A\nB"}


# --- bytes that are not UTF-8 --------------------------------------------------------------------------------------

NAMED = [
    "model_path",
    "prompts_file",
    "output",
    "score",
    "prompt",
    "stop",
    "bias",
    "ban_words",
    "decoding",
    "checkpoint",
]


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("value", ["caf\udce9", "\ud83d", "\udced\udca0\udcbd", "日\udcff=1"])
def test_bytes_that_are_not_utf8_are_refused_with_their_flag(name: str, value: str, capsys: Capture) -> None:
    assert generate_from_finetuned.main([f"--{name}", value]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"generate_from_finetuned.py: error: --{name} ")
    assert "is not UTF-8" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "name", ["train_file", "output_dir", "model_name", "validation_file", "text_column", "trainer"]
)
def test_training_refuses_them_before_it_writes_anything(name: str, tmp_path: Path, capsys: Capture) -> None:
    assert finetune_gpt2.main([f"--{name}", f"{tmp_path}/caf\udce9"]) == 2
    assert f"error: --{name} is not UTF-8: {tmp_path}/caf\ufffd" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["stop", "bias", "ban_words"])
def test_half_an_emoji_in_options_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="half a character") as caught:
        decoding_options({name: ("\ud83d=1",)})
    assert caught.value.option == name


@pytest.mark.parametrize("name", ["stop", "bias", "ban_words"])
def test_half_an_emoji_in_json_is_refused_with_its_line(name: str, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a"}\n\n' + json.dumps({"prompt": "b", name: ["fine", "\ud83d=1"]}) + "\n")
    with pytest.raises(UserError, match=r"p\.jsonl line 3 holds \\ud83d, half of a character"):
        read_prompts(PromptOptions(prompts_file=str(file)))


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
SHOW_PARSED = (
    "import sys, generate_from_finetuned as script\n"
    "given = script.parser().parse(sys.argv[1:])\n"
    "sys.stdout.buffer.write(given['prompt'].encode('utf-8') + b'|' + given['stop'][0].encode('utf-8'))"
)


@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"LC_ALL": "POSIX", "PYTHONUTF8": "0"}, ASCII])
def test_text_is_utf8_in_any_locale(locale: dict[str, str]) -> None:
    command = [sys.executable, "-c", SHOW_PARSED, "--prompt", "é日", "--stop", "猫"]
    found = subprocess.run(command, cwd=ROOT, env={**os.environ, **locale}, capture_output=True, check=True)
    assert found.stdout.decode("utf-8") == "é日|猫"


@pytest.mark.parametrize("flag", ["--output_dir", "--model_name", "--resume"])
def test_directory_that_libraries_could_not_open_is_refused(flag: str, tmp_path: Path) -> None:
    """Libraries accept only UTF-8 names: the run would fail at its first save, after training."""
    command = [sys.executable, "finetune_gpt2.py", "--train_file", "sample_data.txt", flag, f"{tmp_path}/é"]
    found = subprocess.run(command, cwd=ROOT, env={**os.environ, **ASCII}, capture_output=True, check=False)
    expected = f"finetune_gpt2.py: error: {flag} {tmp_path}/é cannot be opened in this locale: set PYTHONUTF8=1"
    assert found.stderr.decode("utf-8").startswith(expected)
    assert found.returncode == 2
    assert not list(tmp_path.iterdir())


def test_file_name_with_an_accent_in_a_locale_without_it(model_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, "generate_from_finetuned.py", "--model_path", str(model_dir), "--decoding", "greedy"]
    command += ["--prompt", "é日", "--max_new_tokens", "3", "--output", f"{tmp_path}/café.txt"]
    environment = {**os.environ, **ASCII, kernels.SWITCH: "0"}  # a few tokens are not worth compiling for
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    assert (tmp_path / "café.txt").read_text(encoding="utf-8").startswith("é日")
