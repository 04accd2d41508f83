"""Each script from its command line to the files and texts that it writes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import finetune_gpt2
import generate_from_finetuned
import gpt2_text_generation
import text_generation_demo
from gpt2tg.generation.generator import load
from gpt2tg.options import DecodingOptions

ROOT = Path(__file__).parent.parent

Capture = pytest.CaptureFixture[str]


def words(model_dir: Path, *rest: str) -> list[str]:
    return ["--model_path", str(model_dir), "--prompt", "The fox", "--max_new_tokens", "12", *rest]


def training_words(text_file: Path, model_dir: Path, output_dir: Path, *rest: str) -> list[str]:
    return [
        "--train_file", str(text_file), "--model_name", str(model_dir), "--output_dir", str(output_dir),
        "--block_size", "16", "--max_steps", "3", "--batch-size", "2", *rest,
    ]  # fmt: skip


def test_train_then_generate(text_file: Path, model_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    output_dir = tmp_path / "mine"
    assert finetune_gpt2.main(training_words(text_file, model_dir, output_dir)) == 0
    assert capsys.readouterr().out == ""
    assert generate_from_finetuned.main(words(output_dir, "--seed", "1")) == 0
    out, err = capsys.readouterr()
    assert out.count("The fox") == 3
    assert [line for line in err.splitlines() if line] == [f"--- text {n} of 3 ---" for n in (1, 2, 3)]


def test_samples_after_training(text_file: Path, model_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    samples = ["--generate_samples", "--num_samples", "2", "--prompt", "The owl"]
    # 200 tokens are over the 64 positions of the tiny model: samples take what there is.
    assert finetune_gpt2.main(training_words(text_file, model_dir, tmp_path / "mine", *samples)) == 0
    assert capsys.readouterr().out.count("The owl") == 2


def test_from_scratch(text_file: Path, tmp_path: Path, capsys: Capture) -> None:
    shape = ["--vocab_size", "280", "--n_layer", "1", "--n_embd", "16", "--n_head", "2", "--n_positions", "32"]
    command = ["--train_file", str(text_file), "--output_dir", str(tmp_path / "new"), "--block_size", "16"]
    assert finetune_gpt2.main([*command, "--from_scratch", *shape, "--max_steps", "2"]) == 0
    assert generate_from_finetuned.main(words(tmp_path / "new", "--decoding", "greedy")) == 0
    assert capsys.readouterr().out.startswith("The fox")


@pytest.mark.parametrize("decoding", ["greedy", "beam", "sample", "top_k", "top_p", "beam_sample"])
def test_one_text_stands_alone_on_stdout(model_dir: Path, decoding: str, capsys: Capture) -> None:
    command = words(model_dir, "--decoding", decoding, "--num_sequences", "1")
    assert generate_from_finetuned.main(command) == 0
    out, err = capsys.readouterr()
    assert out.startswith("The fox")
    assert out.endswith("\n")
    assert "seed" in err or decoding in ("greedy", "beam")


def test_printed_seed_reproduces_the_texts(model_dir: Path, capsys: Capture) -> None:
    generate_from_finetuned.main(words(model_dir, "--temperature", "1"))
    out, err = capsys.readouterr()
    seed = err.split("--seed ")[1].split()[0]
    generate_from_finetuned.main(words(model_dir, "--temperature", "1", "--seed", seed))
    assert capsys.readouterr().out == out


def test_unused_flags_produce_a_notice(model_dir: Path, capsys: Capture) -> None:
    command = words(model_dir, "--decoding", "greedy", "--top_p", "0.5", "--num-beams", "4")
    assert generate_from_finetuned.main(command) == 0
    assert capsys.readouterr().err.splitlines() == [
        "--top_p is not used: --decoding greedy does not use it",
        "--num_beams is not used: --decoding greedy does not use it",
    ]


def test_train_then_generate_with_one_script(text_file: Path, model_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    output_dir = tmp_path / "both"
    assert gpt2_text_generation.main(["--task", "train", *training_words(text_file, model_dir, output_dir)]) == 0
    command = ["--task", "generate", "--model_name", str(output_dir), "--prompt", "The fox", "--max_length", "20"]
    assert gpt2_text_generation.main(command) == 0
    assert capsys.readouterr().out.startswith("The fox")


def test_device_of_a_training_task_is_used(text_file: Path, model_dir: Path, tmp_path: Path, capsys: Capture) -> None:
    words = training_words(text_file, model_dir, tmp_path / "out", "--device", "cpu", "--dry_run")
    assert gpt2_text_generation.main(["--task", "train", *words]) == 0
    assert "--device is not used" not in capsys.readouterr().err


def test_flag_of_another_task_produces_a_notice(model_dir: Path, capsys: Capture) -> None:
    command = ["--task", "generate", "--model_name", str(model_dir), "--max_length", "20", "--epochs", "3"]
    assert gpt2_text_generation.main(command) == 0
    assert capsys.readouterr().err == "--epochs is not used: it does nothing in --task generate\n"


def test_prompts_from_a_pipe(model_dir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("The fox\n\nThe owl\n"))
    command = ["--model_path", str(model_dir), "--decoding", "greedy", "--max_new_tokens", "5"]
    assert text_generation_demo.main(command) == 0
    out = capsys.readouterr().out
    assert out.startswith("The fox")
    assert "\nThe owl" in out


def test_refused_line_of_a_pipe_fails_the_script(
    model_dir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other lines are answered, and the exit code tells that one was not."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("The fox\n/shw\nThe owl\r\n"))
    command = ["--model_path", str(model_dir), "--decoding", "greedy", "--max_new_tokens", "5"]
    assert text_generation_demo.main(command) == 2
    out, err = capsys.readouterr()
    assert out.startswith("The fox")
    assert "\nThe owl" in out
    assert "\x1b" not in out + err
    assert err == (
        "error: unknown command /shw: did you mean /show?\n"
        "text_generation_demo.py: error: 1 of the lines could not be answered\n"
    )


def test_session_begins_with_the_prompt(model_dir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = load(str(model_dir))
    options = DecodingOptions(decoding="greedy", max_new_tokens=12, num_sequences=1)
    for script, more in ((text_generation_demo, []), (generate_from_finetuned, ["--interactive"])):
        monkeypatch.setattr(sys, "stdin", io.StringIO("/continue\n"))
        assert script.main(words(model_dir, "--decoding", "greedy", *more)) == 0
        first = generator.generate("The fox", options)[0].text
        assert capsys.readouterr().out == f"{first}\n{generator.generate(first, options)[0].completion}\n"


@pytest.mark.parametrize("flags", [["--output", "x"], ["--format", "jsonl"], ["--candidates", "3"], ["--score", "x"],
                                   ["--prompts_file", "x"], ["--show_probabilities"]])  # fmt: skip
def test_flags_that_contradict_a_session_are_refused(model_dir: Path, flags: list[str], capsys: Capture) -> None:
    assert generate_from_finetuned.main(words(model_dir, "--interactive", *flags)) == 2
    assert f"--interactive and {flags[0]} contradict each other" in capsys.readouterr().err


# --- likely mistakes ------------------------------------------------------------------------------------------


def test_mistakes_end_in_one_line_and_exit_code_2(
    text_file: Path, model_dir: Path, tmp_path: Path, capsys: Capture
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "diary.txt").write_text("mine")
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"PK\0\1")
    latin = tmp_path / "latin.txt"
    latin.write_bytes("Ein Märchen".encode("latin-1"))
    empty = tmp_path / "empty.txt"
    empty.touch()
    (tmp_path / "nothing").mkdir()
    out = tmp_path / "never"

    def train(file: Path, *rest: str, output_dir: Path = out) -> tuple[object, list[str]]:
        return finetune_gpt2, training_words(file, model_dir, output_dir, *rest)

    mistakes = {
        "is a directory without a text file": train(tmp_path / "nothing"),
        "does not exist": train(tmp_path / "no.txt"),
        "holds no text (0 bytes)": train(empty),
        "is a binary file: byte 2 is zero": train(binary),
        "is not UTF-8: byte 5": train(latin),
        "--block_size 65 is over the context length": train(text_file, "--block_size", "65"),
        "is not empty": train(text_file, output_dir=full),
        "--validation_split 1.5 is out of range": train(text_file, "--validation_split", "1.5"),
        "--fp16 and --bf16 contradict": train(text_file, "--fp16", "--bf16"),
        "holds no model: config.json is missing, found diary.txt": (generate_from_finetuned, words(full)),
        "nowhere/at/all does not exist": (generate_from_finetuned, words(Path("nowhere/at/all"))),
        "--num_sequences 2 asked for, but greedy gives 1": (
            generate_from_finetuned, words(model_dir, "--decoding", "greedy", "--num_sequences", "2"),
        ),
        "--num_sequences 6 is more than --num_beams 5": (
            generate_from_finetuned, words(model_dir, "--decoding", "beam", "--num_sequences", "6"),
        ),
        "--max_new_tokens 12 and --max_length 30 contradict": (
            generate_from_finetuned, words(model_dir, "--max_length", "30"),
        ),
        "--device cuda:99 asked for": (generate_from_finetuned, words(model_dir, "--device", "cuda:99")),
        "--task is required": (gpt2_text_generation, []),
        "give one of the two": (text_generation_demo, words(model_dir, "--model_name", "gpt2")),
        "--model_name gpt2-tiny (bundled, works offline)": (gpt2_text_generation, ["--task", "generate"]),
    }  # fmt: skip
    for message, (script, command) in mistakes.items():
        assert script.main(command) == 2, message  # type: ignore[attr-defined]
        stdout, stderr = capsys.readouterr()
        assert stdout == ""
        last = stderr.splitlines()[-1]
        assert message in last
        assert last.startswith(f"{script.__name__}.py: error: ")  # type: ignore[attr-defined]
        assert "Traceback" not in stderr
    assert not out.exists()
    assert [path.name for path in full.iterdir()] == ["diary.txt"]


def test_closed_pipe_is_no_error(model_dir: Path) -> None:
    command = (
        f"{sys.executable} generate_from_finetuned.py --model_path {model_dir} --max_length 60 --seed 1 | head -c 1"
    )
    script = f"{command}; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert "error" not in result.stderr
    assert len(result.stdout) == 1


def test_utf8_in_any_locale(model_dir: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "generate_from_finetuned.py", *words(model_dir, "--decoding", "greedy")]
    command[command.index("The fox")] = "Märchen 猫"
    result = subprocess.run(command, cwd=ROOT, capture_output=True, env=environment, check=True)
    assert result.stdout.decode("utf-8").startswith("Märchen 猫")
