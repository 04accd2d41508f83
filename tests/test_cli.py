"""The flags of the four scripts, and what becomes of errors."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import finetune_gpt2
import generate_from_finetuned
import gpt2_text_generation
import text_generation_demo
from gpt2tg import cli
from gpt2tg.errors import RunError
from gpt2tg.options import (
    ALL_IN_ONE_DEFAULTS,
    CompareOptions,
    DecodingOptions,
    DeviceOptions,
    InspectionOptions,
    ModelNameOptions,
    ModelPathOptions,
    PrecisionOptions,
    PromptOptions,
    SessionOptions,
    TrainingOptions,
    TuneOptions,
    decoding_options,
    only,
)

ROOT = Path(__file__).parent.parent
SCRIPTS = [finetune_gpt2, generate_from_finetuned, gpt2_text_generation, text_generation_demo]

# What the project promises its users, written down once more by hand.
TRAINING_DEFAULTS = dict(
    validation_split=0.05, output_dir="./fine_tuned_model", block_size=128, batch_size=4, epochs=3, max_steps=None,
    learning_rate=5e-5, save_steps=1000, seed=42, fp16=False, bf16=False, gradient_checkpointing=False,
    gradient_accumulation_steps=1, generate_samples=False, prompt="Once upon a time", num_samples=3,
    from_scratch=False, examples="line",
)  # fmt: skip
GENERATION_DEFAULTS = dict(
    max_length=200, max_new_tokens=None, sequences=3, decoding="top_p", temperature=0.7, effective_top_k=None,
    effective_top_p=0.9, no_repeat_ngram=0, num_beams=5, early_stopping="false", seed=None,
)  # fmt: skip


def test_training_defaults() -> None:
    options = TrainingOptions()
    assert {name: getattr(options, name) for name in TRAINING_DEFAULTS} == TRAINING_DEFAULTS
    assert ModelNameOptions().model_name == "gpt2"


def test_generation_defaults() -> None:
    options = decoding_options({})
    values = {name: getattr(options, name) for name in GENERATION_DEFAULTS if name != "max_length"}
    assert {**values, "max_length": options.max_length or 200} == GENERATION_DEFAULTS
    assert PromptOptions().prompt == "Once upon a time"
    assert DeviceOptions().device == "auto"


def test_defaults_of_the_script_that_does_both() -> None:
    options = decoding_options({}, **only(DecodingOptions, ALL_IN_ONE_DEFAULTS))
    assert (options.decoding, options.max_length, options.sequences) == ("greedy", 100, 1)
    assert cli.pick(TrainingOptions, {}, **ALL_IN_ONE_DEFAULTS).output_dir == "./trained_model"


SAMPLE_VALUES = {int: "3", float: "0.5", str: "words", tuple: "words"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_every_flag_reaches_its_option(script: ModuleType) -> None:
    """Each flag alone, in both spellings, is parsed to the type of its field and to nothing else."""
    groups = {
        finetune_gpt2: (ModelNameOptions, TrainingOptions),
        generate_from_finetuned: (
            ModelPathOptions, DeviceOptions, PrecisionOptions, DecodingOptions, PromptOptions, SessionOptions,
            InspectionOptions
        ),
        gpt2_text_generation: (
            ModelNameOptions, TrainingOptions, DeviceOptions, PrecisionOptions, DecodingOptions, PromptOptions,
            InspectionOptions
        ),
        text_generation_demo: (
            ModelNameOptions, ModelPathOptions, DeviceOptions, PrecisionOptions, CompareOptions, TuneOptions,
            DecodingOptions, PromptOptions,
        ),
    }[script]  # fmt: skip
    parser = script.parser()
    for options in groups:
        for field in dataclasses.fields(options):
            if script is text_generation_demo and options is PromptOptions and field.name not in (
                "prompt", "prompts_file", "text_column", "batch_size",
            ):  # fmt: skip
                continue  # the demo writes to the terminal, or a comparison to its own file
            kind = cli.plain_type(options, field.name)
            text = (field.metadata["choices"] or [SAMPLE_VALUES.get(kind)])[0]
            for flag in {cli.flag(field.name), cli.flag(field.name).replace("_", "-")}:
                words = [flag] if kind is bool else [flag, text]
                given = parser.parse(words)
                given.pop("debug", None)
                assert given == {field.name: {bool: True, tuple: (text,)}.get(kind) or kind(text)}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_help_needs_neither_torch_nor_transformers(script: ModuleType) -> None:
    code = (
        f"import sys, {script.__name__} as s\n"
        "try: s.main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'tokenizers', 'numpy', 'tqdm'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert "examples:" in result.stdout
    assert "gpt2-xl" in result.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_help_shows_every_default(script: ModuleType) -> None:
    text = " ".join(script.parser().format_help().split())
    flags = [a for a in script.parser()._actions if a.nargs != 0 and a.option_strings]
    assert text.count("(default: ") >= len(flags)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--temprature", "1"], "unrecognized argument --temprature; did you mean --temperature?"),
        (["--model_pa", "x"], "unrecognized argument --model_pa; did you mean --model_path?"),
        (["--zzzzqqqq"], "unrecognized argument --zzzzqqqq; --help lists all flags"),
        (
            ["--prompt", "once", "upon"],
            "unrecognized argument upon; flags begin with two dashes, and a text",
        ),
        (["--top_k", "many"], "--top_k many is no value for it: expected a whole number"),
        (["--top_k"], "--top_k needs a value after it"),
        (["--decoding", "magic"], "--decoding magic is unknown: choose from greedy, beam, diverse_beam, sample"),
        (["--early_stopping", "perhaps"], "--early_stopping perhaps is unknown: choose from true, false, never"),
        (["--temperature", "nan"], "--temperature nan is out of range"),
        ([], "--model_path is required"),
    ],
)
def test_bad_flags_end_in_one_line_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if words and words != ["--model_path"]:
        words = ["--model_path", "nowhere", *words]
    assert generate_from_finetuned.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("generate_from_finetuned.py: error: ")
    assert message in err


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (RunError("the disk is full"), 1, "error: the disk is full"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (ZeroDivisionError("oh"), 1, "unexpected ZeroDivisionError: oh (--debug shows where)"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 1, "the package torch is not installed"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (BrokenPipeError(), 0, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_exit_codes(
    failure: BaseException, code: int, message: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise failure

    monkeypatch.setattr(cli.os, "dup2", lambda *_: None)  # the stdout of pytest must survive the closed pipe
    assert cli.run(finetune_gpt2.parser(), fail, []) == code
    err = capfd.readouterr().err
    assert message in err
    assert err.count("\n") <= 1


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError("oh")

    assert cli.run(finetune_gpt2.parser(), fail, ["--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


# The end of a process


PROCESS = """
import atexit, sys
from gpt2tg import cli
from gpt2tg.errors import UserError

class LongToTakeApart:
    def __del__(self):
        print("taken apart")

held = LongToTakeApart()
atexit.register(print, "exit function from before", file=sys.stderr)

def body(given):
    atexit.register(print, "exit function", file=sys.stderr)
    {body}

code = cli.run(cli.Parser(prog="x.py", description="", examples=""), body, None)
{end}
"""


def ended(body: str, end: str = "cli.leave(code)") -> subprocess.CompletedProcess[str]:
    """A process that runs a script with this body, and how it ends."""
    command = [sys.executable, "-c", PROCESS.format(body=body, end=end)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize(
    ("body", "exit_code"), [("pass", 0), ("raise UserError('no', 'flag')", 2), ("raise KeyboardInterrupt", 130)]
)
def test_a_process_ends_with_its_code_after_its_exit_functions_and_is_not_taken_apart(
    body: str, exit_code: int
) -> None:
    result = ended(f"print('product'); {body}")
    assert result.returncode == exit_code
    assert result.stdout == "product\n"
    assert result.stderr.endswith("exit function\nexit function from before\n")


@pytest.mark.parametrize("body", ["sys.modules['transformers'] = None", "sys.ps1 = '>>> '"])
def test_after_training_and_in_a_session_of_python_a_process_ends_the_ordinary_way(body: str) -> None:
    result = ended(body)
    assert (result.returncode, result.stdout) == (0, "taken apart\n")


def test_a_program_that_calls_a_script_ends_as_it_likes() -> None:
    result = ended("pass", end="raise SystemExit(7)")
    assert (result.returncode, result.stdout) == (7, "taken apart\n")


def test_an_output_that_cannot_be_written_is_one_line_at_the_end_too(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    with (tmp_path / "out").open("w") as out:
        result = subprocess.run(
            [sys.executable, "-c", PROCESS.format(body="print('product')", end="cli.leave(code)")],
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
        )
    assert result.returncode == 1
    error, *rest = result.stderr.splitlines()
    assert error.startswith("x.py: error: ")
    assert rest == ["exit function", "exit function from before"]
