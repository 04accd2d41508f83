"""The flags of the four scripts: defaults, both spellings, values, and one line for a wrong one."""

from __future__ import annotations

import re
from types import ModuleType

import pytest

import finetune_gpt2
import generate_from_finetuned
import gpt2_text_generation
import text_generation_demo
from gpt2tg import cli
from gpt2tg.cli.flags import Flag
from gpt2tg.options import (
    ALL_IN_ONE_DEFAULTS,
    DecodingOptions,
    DeviceOptions,
    ModelNameOptions,
    PromptOptions,
    TaskOptions,
    TrainingOptions,
    decoding_options,
    only,
)

SCRIPTS = [finetune_gpt2, generate_from_finetuned, gpt2_text_generation, text_generation_demo]

# What the project promises its users, written down a second time by hand.
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


def sample(flag: Flag) -> list[str]:
    """A flag with a value that its type allows."""
    values = {int: "3", float: "0.5", str: "words", tuple: "words"}
    return [flag.name] if flag.kind is bool else [flag.name, (flag.field.metadata["choices"] or [values[flag.kind]])[0]]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_every_flag_reaches_its_option(script: ModuleType) -> None:
    """Each flag alone, in both spellings, is parsed to the type of its field and to nothing else."""
    parser = script.parser()
    for flag in parser.flags():
        name, *text = sample(flag)
        value = {bool: True, tuple: tuple(text)}.get(flag.kind) or flag.kind(*text)
        for spelling in {name, "--" + name[2:].replace("_", "-")}:
            assert parser.parse([spelling, *text]) == {flag.field.name: value}


def test_each_task_has_the_flags_of_its_own_script() -> None:
    """A task must not call a flag unused that its command would use, as --device was for training."""
    both = gpt2_text_generation.parser()
    training = {flag.name for flag in both.flags("train")}
    exporting = {"--merge", "--export", "--precision"}  # instead of training
    assert training - {"--task"} == {flag.name for flag in finetune_gpt2.parser().flags()} - exporting
    generating = {flag.name for flag in both.flags("generate")}
    alone = {flag.name for flag in generate_from_finetuned.parser().flags()}
    assert generating - {"--task", "--model_name"} == alone - {"--model_path", "--interactive"}


@pytest.mark.parametrize("task", ["train", "generate", "evaluate"])
def test_flags_that_a_task_does_not_have_are_noticed(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With every flag at once; they contradict each other, which ends the command after the notices."""
    parser = gpt2_text_generation.parser()
    others = [flag for flag in parser.flags() if flag.options is not TaskOptions]
    words = [word for flag in others for word in sample(flag)]
    assert gpt2_text_generation.main(["--task", task, *words]) == 2
    noticed = re.findall(r"^(\S+) is not used: it does nothing in --task", capsys.readouterr().err, re.MULTILINE)
    assert noticed == [flag.name for flag in others if not flag.in_task(task)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--temprature", "1"], "unrecognized argument --temprature; did you mean --temperature?"),
        (["--model_pa", "x"], "unrecognized argument --model_pa; did you mean --model_path?"),
        (["--zzzzqqqq"], "unrecognized argument --zzzzqqqq; --help-all lists all flags"),
        (
            ["--prompt", "once", "upon"],
            "unrecognized argument upon; flags begin with two dashes, and a text",
        ),
        (["--top_k", "many"], "--top_k many is not valid: give a whole number"),
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
