"""The run of a script: exit codes, one line for an error, and how to resume after a signal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import finetune_gpt2
from gpt2tg import cli
from gpt2tg.cli.run import how_to_resume
from gpt2tg.errors import Interrupted, RunError
from gpt2tg.io import streams

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (RunError("the disk is full"), 1, "error: the disk is full"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (RuntimeError("MPS backend out of memory"), 1, "error: out of memory: lower --batch_size, or use --device cpu"),
        (ZeroDivisionError("oh"), 1, "unexpected ZeroDivisionError: oh (--debug shows where)"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 1, "the package torch is not installed"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Interrupted("terminated", 15), 143, "terminated"),
        (BrokenPipeError(), 0, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_exit_codes(
    failure: BaseException, code: int, message: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise failure

    monkeypatch.setattr(streams.os, "dup2", lambda *_: None)  # the stdout of pytest must survive the closed pipe
    assert cli.run(finetune_gpt2.parser(), fail, []) == code
    err = capfd.readouterr().err
    assert message in err
    assert err.count("\n") <= 1


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError("oh")

    assert cli.run(finetune_gpt2.parser(), fail, ["--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["--train_file", "my text.txt"], "add --resume to the same command"),
        (["--train_file", "a.txt", "--overwrite"], "give the same command with --resume instead of --overwrite"),
        (["--resume", "--epochs", "3"], "give the same command again"),
        (["--resume", "out/checkpoint-5", "--bf16"], "give the same command with --resume alone, without its path"),
        (["--resume=out/checkpoint-5"], "give the same command with --resume alone, without its path"),
    ],
)
def test_saved_run_says_how_to_resume(words: list[str], advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(_: object) -> None:
        raise Interrupted("step 5 is saved", 15, is_saved=True)

    assert cli.run(finetune_gpt2.parser(), stop, words) == 143
    assert capsys.readouterr().err == f"step 5 is saved\nto resume, {advice}\n"
    assert how_to_resume(finetune_gpt2.parser().pairs(words)) == f"to resume, {advice}"


def test_secret_on_the_command_line_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    def stop(_: object) -> None:
        raise Interrupted("step 5 is saved", 15, is_saved=True)

    words = ["--trainer", "hub_token=hf_secret", "adam_beta1=0.8", "--trainer=hub_token=hf_secret"]
    assert cli.run(finetune_gpt2.parser(), stop, words) == 143
    assert "hf_secret" not in "".join(capsys.readouterr())


def test_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    script = (
        "import sys\nfrom gpt2tg import cli\n"
        "parser = cli.Parser(prog='x.py', description='', examples='')\n"
        "sys.exit(cli.run(parser, lambda given: print('product'), []))"
    )
    with (tmp_path / "out").open("w") as out:
        result = subprocess.run(
            [sys.executable, "-c", script],
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
        )
    assert result.returncode == 1
    (error,) = result.stderr.splitlines()
    assert error.startswith("x.py: error: ")
