"""Every option of every class refuses values of the wrong type by name, in the Python API as on the command line."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from gpt2tg.errors import UserError
from gpt2tg.options import (
    AdapterOptions,
    CheckpointOptions,
    CompareOptions,
    CompletionOptions,
    DecodingOptions,
    DeviceOptions,
    DraftOptions,
    EvaluationOptions,
    ExportOptions,
    InspectionOptions,
    ModelNameOptions,
    ModelPathOptions,
    Options,
    PrecisionOptions,
    PromptOptions,
    ServingOptions,
    SessionOptions,
    TaskOptions,
    TrainingOptions,
    TuneOptions,
)
from gpt2tg.options.desk import (
    Choice,
    ComparisonRequest,
    Continuation,
    Edit,
    ModelSwitch,
    NewText,
    NodeChange,
    TextChange,
    TextToScore,
)

# Values that no option of this type accepts, and what the message asks for instead. None is added where it is wrong.
WRONG: dict[type, tuple[list[Any], str]] = {
    bool: ([0, 1, 0.0, "true", "", (), "None"], "give True or False"),
    int: ([2.5, 1.0, "3", "", True, False, (), [1], b"3", 1j, float], "give a whole number"),
    float: (["hot", "0.5", "", True, False, (), [0.5], b"1", 1j], "give a number"),
    str: ([3, 0, 2.5, True, False, b"x", (), ("x",), ["x"], Path("x")], "give a string"),
    tuple: ([3, 0, True, b"x", (1,), ("a", 3), ("a", None), ["a", b"b"], {"a"}, {"a": 1}], "give a tuple of strings"),
}

# Options that are documented to accept one string for a tuple of one.
ACCEPT_A_STRING = {
    *(
        "lr_scheduler_kwargs",
        "test_file",
        "train_file",
        "validation_file",
        "try_",
        "trainer",
        "eval_file",
        "add_tokens",
    ),
    "adapter",
}

OPTIONAL: dict[type[Options], Collection[str]] = {
    DecodingOptions: {
        *("top_k", "top_p", "min_p", "typical_p", "seed", "replay", "num_beam_groups", "penalty_window"),
        *("num_sequences", "best_of", "max_length", "max_new_tokens", "prompt_lookup", "max_time"),
    },
    PromptOptions: {"prompts_file", "text_column", "output"},
    InspectionOptions: {"candidates", "score"},
    ModelPathOptions: {"model_path"},
    DraftOptions: {"draft_model"},
    CheckpointOptions: {"checkpoint"},
    CompareOptions: {"strategies", "reference", "num_prompts", "train_file", "report", "output"},
    TaskOptions: {"task"},
    TrainingOptions: {
        *(
            "text_column",
            "chat_template",
            "resume",
            "eval_steps",
            "early_stopping_patience",
            "max_steps",
            "dropout",
            "sample_steps",
        ),
        *("max_train_examples", "max_eval_examples", "split_seed", "revision"),
        *("dataset_name", "dataset_split", "dataset_revision"),
    },
    EvaluationOptions: {"stride", "text_column"},
    ExportOptions: {"merge", "export", "precision"},
    ServingOptions: {"api_key", "texts_file", "models_folder"},
    TextChange: {"title", "current"},
    Edit: {"version"},
    NodeChange: {"name", "pruned"},
    ComparisonRequest: {"strategies", "max_new_tokens"},
    **dict.fromkeys((NewText, Choice, Continuation, ModelSwitch, TextToScore), frozenset()),
    CompletionOptions: {"model", "logprobs", "user", "suffix"},
}


def leaves(options: type[Options]) -> set[type[Options]]:
    """The classes that no other is made of."""
    return set().union(*map(leaves, options.__subclasses__())) or {options}


CLASSES = sorted(leaves(Options), key=lambda options: options.__name__)
FIELDS = [(options, field) for options in CLASSES for field in dataclasses.fields(options)]


def kind_of(options: type[Options], name: str) -> type:
    """The plain type of a field, read from its annotation without the code under test."""
    hint = typing.get_type_hints(options)[name]
    plain = next((part for part in typing.get_args(hint) if type(None) in typing.get_args(hint)), hint)
    return {Literal: str, tuple: tuple}.get(typing.get_origin(plain), plain)


def wrong_values(options: type[Options], field: dataclasses.Field[Any]) -> list[Any]:
    values = list(WRONG[kind_of(options, field.name)][0])
    if field.name not in OPTIONAL.get(options, ()):
        values.append(None)
    if kind_of(options, field.name) is tuple and field.name not in ACCEPT_A_STRING:
        values.append("one string")
    return values


def test_the_grid_covers_every_option_class() -> None:
    assert {
        *OPTIONAL, AdapterOptions, DeviceOptions, ModelNameOptions, PrecisionOptions, SessionOptions, TuneOptions
    } == set(CLASSES)  # fmt: skip
    assert len(FIELDS) > 100


@pytest.mark.parametrize(("options", "field"), FIELDS, ids=[f"{o.__name__}-{f.name}" for o, f in FIELDS])
def test_wrong_type_is_refused_by_name(options: type[Options], field: dataclasses.Field[Any]) -> None:
    choices = field.metadata["choices"]
    for value in wrong_values(options, field):
        with pytest.raises(UserError) as caught:
            options(**{field.name: value})
        assert caught.value.option == field.name.rstrip("_")
        assert repr(value) in str(caught.value)
        kind = kind_of(options, field.name)
        expected = f"give one of {choices[0]}, " if choices and kind is str else WRONG[kind][1]
        assert expected in str(caught.value), value


@pytest.mark.parametrize(("options", "field"), FIELDS, ids=[f"{o.__name__}-{f.name}" for o, f in FIELDS])
def test_default_is_accepted_and_none_where_it_means_off(options: type[Options], field: dataclasses.Field[Any]) -> None:
    assert getattr(options(**{field.name: field.default}), field.name) == field.default
    if field.name in OPTIONAL.get(options, ()):
        assert getattr(options(**{field.name: None}), field.name) is None


@pytest.mark.parametrize(("options", "field"), FIELDS, ids=[f"{o.__name__}-{f.name}" for o, f in FIELDS])
def test_choices_are_those_of_the_annotation(options: type[Options], field: dataclasses.Field[Any]) -> None:
    """The annotation is what a type checker sees, the choices are what is checked when the options are built."""
    hint = typing.get_type_hints(options)[field.name]
    literals = [part for part in (hint, *typing.get_args(hint)) if typing.get_origin(part) is Literal]
    assert field.metadata["choices"] == (typing.get_args(literals[0]) if literals else None)


@pytest.mark.parametrize(
    ("options", "values", "message"),
    [
        (DecodingOptions, {"top_k": 2.5}, "top_k 2.5 is not valid: give a whole number or None"),
        (DecodingOptions, {"top_k": True}, "top_k True is not valid: give a whole number or None"),
        (DecodingOptions, {"temperature": "hot"}, "temperature 'hot' is not valid: give a number"),
        (DecodingOptions, {"temperature": None}, "temperature None is not valid: give a number"),
        (DecodingOptions, {"num_beams": None}, "num_beams None is not valid: give a whole number"),
        (DecodingOptions, {"stop": "END"}, "stop 'END' is not valid: give a tuple of strings"),
        (DecodingOptions, {"ban_words": ("a", 1)}, "ban_words ('a', 1) is not valid: give a tuple of strings"),
        (DecodingOptions, {"keep_stop": "yes"}, "keep_stop 'yes' is not valid: give True or False"),
        (DecodingOptions, {"replay": 7}, "replay 7 is not valid: give a string or None"),
        (DecodingOptions, {"decoding": "topp"}, "decoding topp is unknown: did you mean top_p?"),
        (DecodingOptions, {"overflow": "wrap"}, "overflow wrap is unknown: choose from error, truncate, slide"),
        (
            DecodingOptions,
            {"early_stopping": True},
            "early_stopping True is not valid: give one of true, false, never",
        ),
        (TrainingOptions, {"epochs": "3"}, "epochs '3' is not valid: give a number"),
        (TrainingOptions, {"batch_size": 4.0}, "batch_size 4.0 is not valid: give a whole number"),
        (TrainingOptions, {"dropout": True}, "dropout True is not valid: give a number or None"),
        (TrainingOptions, {"fp16": 1}, "fp16 1 is not valid: give True or False"),
        (TrainingOptions, {"report_to": "wandb"}, "report_to 'wandb' is not valid: give a tuple of strings"),
        (TrainingOptions, {"try_": 3}, "try 3 is not valid: give a tuple of strings"),
        (
            TrainingOptions,
            {"lora_targets": ("c_atn",)},
            "lora_targets c_atn is unknown: did you mean c_attn?",
        ),
        (TrainingOptions, {"optim": "adam"}, "optim adam is unknown: did you mean adamw_torch_fused?"),
        (TrainingOptions, {"output_dir": None}, "output_dir None is not valid: give a string"),
        (EvaluationOptions, {"examples": "word"}, "examples word is unknown: choose from line, paragraph, file"),
        (DeviceOptions, {"device": 0}, "device 0 is not valid: give a string"),
        (DeviceOptions, {"device": "gpu"}, "device gpu is not a device: use auto, cpu, cuda, cuda:N or mps"),
        (PrecisionOptions, {"precision": 16}, "precision 16 is not valid: give one of auto, fp32, fp16, int8"),
        (PrecisionOptions, {"precision": "fp64"}, "precision fp64 is unknown: did you mean fp"),
        (CheckpointOptions, {"checkpoint": 5}, "checkpoint 5 is not valid: give a string or None"),
        (CheckpointOptions, {"checkpoint": "first"}, "checkpoint first is not a checkpoint: give best, last or"),
        (TaskOptions, {"task": "tune"}, "task tune is unknown: choose from train, generate, evaluate"),
        (PromptOptions, {"format": "json"}, "format json is unknown: did you mean jsonl?"),
        (DecodingOptions, {"top_k": "x" * 100}, f"top_k '{'x' * 36}... is not valid: give a whole number"),
        (DecodingOptions, {"max_time": 10**400}, f"max_time {10**400} is out of range: it must be more than 0 and at"),
        (DecodingOptions, {"temperature": 10**400}, f"temperature {10**400} is out of range: it must be at least 0"),
        (DecodingOptions, {"top_k": np.int64(0)}, "top_k 0 is out of range: it must be at least 1"),
        (DecodingOptions, {"top_p": np.float32("nan")}, "top_p nan is out of range: it must be at least 0 and at most"),
    ],
)
def test_refusal_says_what_to_give(options: type[Options], values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        options(**values)
    assert str(caught.value).startswith(message)
    assert caught.value.option == next(iter(values)).rstrip("_")


@pytest.mark.parametrize(
    ("options", "name", "value", "held"),
    [
        (DecodingOptions, "temperature", 1, 1),
        (DecodingOptions, "top_k", np.int64(5), 5),
        (DecodingOptions, "top_p", np.float32(0.5), 0.5),
        (DecodingOptions, "stop", ["a", "b"], ("a", "b")),
        (DecodingOptions, "seed", 0, 0),
        (TrainingOptions, "train_file", "a.txt", ("a.txt",)),
        (TrainingOptions, "trainer", "adam_beta1=0.8", ("adam_beta1=0.8",)),
        (TrainingOptions, "lora_targets", ["c_attn", "c_fc"], ("c_attn", "c_fc")),
        (EvaluationOptions, "eval_file", ["a.txt"], ("a.txt",)),
        (DeviceOptions, "device", "cuda:1", "cuda:1"),
        (CheckpointOptions, "checkpoint", "120", "120"),
    ],
)
def test_accepted_value_is_stored(options: type[Options], name: str, value: Any, held: Any) -> None:
    assert getattr(options(**{name: value}), name) == held
