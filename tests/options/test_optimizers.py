"""Names of optimizers and schedules: those of transformers, known without importing it."""

from __future__ import annotations

import typing

import pytest
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from gpt2tg.errors import UserError
from gpt2tg.options import PACKAGES, UNSUITABLE, Optimizer, Scheduler, TrainingOptions
from gpt2tg.training.model.optimizer_memory import MOMENTS


def test_all_optimizers_of_transformers_are_known_or_refused_with_a_reason() -> None:
    known, theirs = set(typing.get_args(Optimizer)), {one.value for one in OptimizerNames}
    assert theirs - known - set(UNSUITABLE) == set()
    assert known - theirs == {"muon"}
    assert known & set(UNSUITABLE) == set()
    assert set(MOMENTS) | {"adafactor"} == known
    assert set(PACKAGES) <= known


def test_all_schedules_of_transformers_are_known() -> None:
    assert set(typing.get_args(Scheduler)) == {one.value for one in SchedulerType}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optim": "adamw_bnb_8bt"}, "optim adamw_bnb_8bt is unknown: did you mean adamw_bnb_8bit?"),
        ({"optim": "galore_adamw"}, "optim galore_adamw works on torch's Linear layers, and the layers of a GPT-2"),
        ({"lr_scheduler_type": "cosin"}, "lr_scheduler_type cosin is unknown: did you mean cosine?"),
        ({"lr_scheduler_type": "greedy", "validation_split": 0}, "lr_scheduler_type greedy needs a validation loss"),
        ({"lr_scheduler_kwargs": "0.1"}, "lr_scheduler_kwargs 0.1 is not of the form name=value: write it like"),
        ({"lr_scheduler_kwargs": ("a=1", "a=2")}, "lr_scheduler_kwargs a=2: a is given twice"),
        ({"lr_scheduler_kwargs": "a=nan"}, "lr_scheduler_kwargs a=nan: give a finite number"),
        ({"warmup_steps": 1.5}, "warmup_steps 1.5 is neither a whole number of steps nor a share below 1"),
        ({"warmup_steps": 0.1, "optim": "schedule_free_sgd"}, "warmup_steps 0.1 must be a number of steps with"),
    ],
)
def test_wrong_names_and_values_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        TrainingOptions(**settings)
    assert str(error.value).startswith(message)


def test_arguments_of_a_schedule_are_read_as_numbers_words_and_switches() -> None:
    options = TrainingOptions(lr_scheduler_kwargs=("a=1e-5", "b=3", "c=true", "d=1-sqrt"), warmup_steps=100.0)
    assert options.scheduler_settings() == {"a": 1e-5, "b": 3, "c": True, "d": "1-sqrt"}
    assert repr(options.warmup_steps) == "100"
