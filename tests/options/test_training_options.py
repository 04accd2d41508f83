"""Options of a training run and of the model: ranges, contradictions, and the trials of a search."""

from __future__ import annotations

import pytest

from gpt2tg.errors import UserError
from gpt2tg.options import DeviceOptions, TrainingOptions


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0.0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("block_size", 3),
        ("batch_size", 0),
        ("validation_split", 1.0),
        ("validation_split", -0.1),
        ("vocab_size", 256),
        ("max_steps", 0),
        ("gradient_accumulation_steps", 0),
        ("save_steps", 0),
        ("dropout", 1.0),
        ("examples", "words"),
    ],
)
def test_training_value_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UserError) as caught:
        TrainingOptions(**{name: value})
    assert caught.value.option == name


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ({"fp16": True, "bf16": True}, "fp16"),
        ({"resume": "newest", "overwrite": True}, "resume"),
        ({"from_scratch": True, "n_embd": 100, "n_head": 3}, "n_embd"),
        ({"from_scratch": True, "block_size": 600}, "block_size"),
    ],
)
def test_contradictory_training_options_are_refused_by_name(given: dict, option: str) -> None:
    with pytest.raises(UserError) as caught:
        TrainingOptions(**given)
    assert caught.value.option == option


def test_trials_are_every_combination_of_the_values() -> None:
    options = TrainingOptions(train_file="a.txt", try_=("learning-rate=1e-5,5e-5", "epochs=2,3"))
    assert options.tried_settings() == [
        {"learning_rate": 1e-5, "epochs": 2.0},
        {"learning_rate": 1e-5, "epochs": 3.0},
        {"learning_rate": 5e-5, "epochs": 2.0},
        {"learning_rate": 5e-5, "epochs": 3.0},
    ]
    assert [(trial.learning_rate, trial.epochs, trial.try_) for trial in options.tries()][1] == (1e-5, 3.0, ())


def test_setting_that_does_not_apply_is_not_suggested() -> None:
    with pytest.raises(UserError, match="n_layer cannot be tried") as caught:
        TrainingOptions(train_file="a.txt", try_=("n_layer=1,2",))
    assert "did you mean n_layer" not in str(caught.value)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1", "mps"])
def test_device_is_accepted(device: str) -> None:
    assert DeviceOptions(device).device == device


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "", "tpu:0"])
def test_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(UserError, match="is not a device"):
        DeviceOptions(device)
