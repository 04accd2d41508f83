"""Recipes: --config, --save_config, and the run.json of an earlier run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

import finetune_gpt2
import generate_from_finetuned
from gpt2tg import cli
from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.errors import UserError
from gpt2tg.options import ModelNameOptions, TrainingOptions
from gpt2tg.training.model.memory_estimate import estimate_memory

Capture = pytest.CaptureFixture[str]

CONFIGS = Path(__file__).parent.parent.parent / "configs"

# Layers, embedding size, heads.
SIZES = {"gpt2": (12, 768, 12), "gpt2-medium": (24, 1024, 16), "gpt2-large": (36, 1280, 20)}


def parsed(*words: str | Path) -> dict[str, Any]:
    return finetune_gpt2.parser().parse([str(word) for word in words])


def written(directory: Path, text: str, name: str = "run.yaml") -> Path:
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("name", "gigabytes"), [("laptop", 4), ("t4", 14), ("24gb", 21), ("several-gpus", 21)])
def test_recipe_of_this_project_fits_its_device(name: str, gigabytes: float) -> None:
    given = parsed("--config", CONFIGS / f"{name}.yaml", "--train_file", "my.txt")
    options = cli.pick(TrainingOptions, given)
    layers, width, heads = SIZES[cli.pick(ModelNameOptions, given).model_name]
    shape = ModelShape(50257, 1024, width, layers, heads, 4 * width, "gelu_new", 1e-5, True, False, True, (0,))
    peak = estimate_memory(shape, options, "none" if options.bf16 or options.fp16 else "chunks").peak
    assert 0.5 * gigabytes < peak / 1e9 < gigabytes


def test_values_of_each_type_are_read(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        train-file: [a.txt, "b c.txt"]
        learning_rate: 1e-4
        epochs: 2
        warmup_steps: 0.05
        bf16: yes
        fp16: false
        compile: off
        resume: true
        text_column: null
        lr_scheduler_type: cosine_with_min_lr
        lr_scheduler_kwargs: {min_lr_rate: 0.1}
        trainer: adam_beta1=0.8
        try: {learning_rate: [1e-5, 5e-5]}
        prompt: "a\\nb"
        """.replace("\n        ", "\n"),
    )
    assert parsed("--config", path) == dict(
        train_file=("a.txt", "b c.txt"), learning_rate=1e-4, epochs=2, warmup_steps=0.05, bf16=True, compile="off",
        resume="newest", lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs=("min_lr_rate=0.1",),
        trainer=("adam_beta1=0.8",), try_=("learning_rate=1e-5,5e-5",), prompt="a\nb",
    )  # fmt: skip


def test_flags_win_over_the_recipe(tmp_path: Path) -> None:
    path = written(tmp_path, "train_file: [a.txt, b.txt]\nbf16: true\nepochs: 5\nmax_steps: 9\nseed: 7\n")
    given = parsed("--epochs", "1", "--config", path, "--train_file", "c.txt", "--bf16=off", "--max_steps", "off")
    assert given == dict(train_file=("c.txt",), epochs=1.0, seed=7, max_steps=None)


def test_flags_replace_what_they_exclude_in_the_recipe(tmp_path: Path) -> None:
    path = written(tmp_path, "train_file: a.txt\nfp16: true\nseed: 7\n")
    given = parsed("--config", path, "--dataset_name", "owls/fables", "--bf16")
    assert given == dict(dataset_name="owls/fables", bf16=True, seed=7)
    assert parsed("--config", path, "--bf16=off") == dict(train_file=("a.txt",), fp16=True, seed=7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "learning_rat: is no flag of this script: did you mean learning_rate?"),
        ("learning_rate: fast", "learning_rate: fast is not valid: give a number"),
        ("learning_rate: true", "learning_rate: True is not valid: give a number"),
        ("learning_rate:", "learning_rate: is empty: give a value, or leave the key out"),
        ("learning_rate: [1, 2]", "learning_rate: is a list or a mapping: give one value"),
        ("learning_rate: -1", "learning_rate: -1 is out of range: it must be more than 0"),
        ("bf16: 1", "bf16: 1 is not valid: give true or false"),
        ("bf16: 'true'", "bf16: true in quotes is not valid: give true or false"),
        ("optim: adamw_trch", "optim: adamw_trch is unknown: did you mean adamw_torch?"),
        ("output_dir: 2024", "output_dir: 2024 is no text: put quotes around it"),
        ("train_file: [1]", "train_file: 1 is no text: put quotes around numbers and words like yes"),
        ("train_file: {a.txt: 3}", "train_file: is a mapping: give a text, or a list of texts"),
        ("seed: 1\nseed: 2", "seed: is there twice: leave one out"),
        ("seed: 1\n--seed: 2", "--seed: is no flag of this script: did you mean seed?"),
        ("train-file: a\ntrain_file: b", "train_file: is there twice: leave one out"),
        ("config: other.yaml", "config: a recipe names no other recipe"),
        ("seed: 1\n\tepochs: 2", "is no valid YAML: line 2: found character '\\t' that cannot start any token"),
        ("seed: !!python/name:os.system", "is no valid YAML: line 1: could not determine a constructor"),
        ("just words", "holds no settings"),
        ("", "holds no settings"),
        ("distributed_type: FSDP", "is a config of accelerate: accelerate launch --config_file takes it"),
    ],
)
def test_wrong_recipe_is_refused_with_file_and_key(text: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UserError) as error:
        parsed("--config", path)
    assert str(error.value).startswith(f"config {path}: {message}")
    assert "\n" not in str(error.value)


def test_missing_and_doubled_recipes_are_refused(tmp_path: Path) -> None:
    for words, message in (
        (["--config", tmp_path / "none.yaml"], "none.yaml: does not exist"),
        (["--config", tmp_path], ": is a directory: give a recipe, such as the run.json in it"),
        (["--config"], "config needs the path of a file after it"),
        (["--config", "a", "--config", "b"], "config is given twice: give one file"),
        (["--conf", "a"], "unrecognized argument --conf; did you mean --config?"),
    ):
        with pytest.raises(UserError) as error:
            parsed(*words)
        assert message in str(error.value)


def test_record_of_a_run_is_a_recipe(tmp_path: Path) -> None:
    """Except for what the run itself resumed or deleted."""
    options = TrainingOptions(
        train_file="a.txt", epochs=2, lora=True, lora_targets=("c_fc",), prompt="\\n", trainer="adam_beta1=0.8",
        overwrite=True, try_=("epochs=1,2",),
    )  # fmt: skip
    record = {"model_name": "gpt2-tiny", "options": asdict(options), "versions": {"gpt2tg": "0"}, "device": "a CPU"}
    path = written(tmp_path, json.dumps(record), "run.json")
    assert parsed("--config", path) == dict(
        model_name="gpt2-tiny", train_file=("a.txt",), epochs=2, lora=True, lora_targets=("c_fc",), prompt="\\n",
        trainer=("adam_beta1=0.8",), try_=("epochs=1,2",),
    )  # fmt: skip


def test_saved_recipe_gives_the_same_flags(tmp_path: Path, capsys: Capture) -> None:
    path, seen = tmp_path / "new.yaml", []
    words = ["--train_file", "yes", "2024", "ü: #1.txt", "--learning_rate", "1e-7", "--prompt", "a\\nb", "--bf16"]
    secret = ["--trainer", "hub_token=hf_x", "adam_beta1=0.8"]
    command = [*words, *secret, "--save_config", str(path), "--overwrite"]
    assert cli.run(finetune_gpt2.parser(), seen.append, command) == 0
    expected = {**seen[0], "trainer": ("adam_beta1=0.8",)}
    del expected["overwrite"]
    assert parsed("--config", path) == expected
    resuming = [*command[:-1], "--resume"]  # the same command, as an interrupted run advises
    assert cli.run(finetune_gpt2.parser(), seen.append, resuming) == 0
    assert cli.run(finetune_gpt2.parser(), seen.append, [*resuming, "--seed", "7"]) == 2
    assert capsys.readouterr().err.endswith(f"--save_config {path} exists: choose another name, or delete it\n")
    assert len(seen) == 2
    assert parsed("--config", path) == expected


def test_recipe_of_a_refused_command_is_not_left_behind(tmp_path: Path) -> None:
    words = ["--fp16", "--bf16", "--train_file", "a.txt", "--save_config", str(tmp_path / "new.yaml")]
    assert finetune_gpt2.main(words) == 2
    assert list(tmp_path.iterdir()) == []


def test_other_scripts_read_recipes(tmp_path: Path) -> None:
    path = written(tmp_path, yaml.safe_dump({"prompt": "The owl", "stop": ["\n"], "top_k": 5, "early_stopping": False}))
    given = generate_from_finetuned.parser().parse(["--config", str(path)])
    assert given == {"prompt": "The owl", "stop": ("\n",), "top_k": 5}
