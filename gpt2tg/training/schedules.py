"""The learning rate schedules of transformers, with their arguments checked before anything is trained."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import transformers
from transformers import optimization
from transformers.trainer_utils import SchedulerType

from gpt2tg.errors import UserError, did_you_mean, one_line
from gpt2tg.options import BY_VALIDATION, TrainingOptions

# Arguments that count steps. Below 1 they are a share of all steps, as --warmup_steps.
COUNTS = ("num_decay_steps", "num_stable_steps")

# Arguments that transformers fills in itself.
FILLED_IN = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch", "self", "kwargs", "verbose")

# The length of a run for the check, if its real length is not known yet.
SOME_STEPS = 1000


def scheduler_arguments(options: TrainingOptions) -> dict[str, Any] | None:
    """Return the arguments of the schedule as transformers takes them; None if there are none."""
    found: dict[str, Any] = options.scheduler_settings()
    if options.lr_scheduler_type == "greedy":
        found = {"min_lr": 0.0, **found}  # transformers' own least rate, 1e-3, is far over that of a fine-tuning
    return found or None


def with_counts(arguments: Mapping[str, Any] | None, steps: int) -> dict[str, Any]:
    """Return the arguments of a schedule with shares of the run as numbers of steps.

    Args:
        steps: of the whole run.
    """
    return {
        name: math.ceil(value * steps) if name in COUNTS and isinstance(value, float) and 0 < value < 1 else value
        for name, value in (arguments or {}).items()
    }


def check_schedule(options: TrainingOptions) -> None:
    """Check the schedule and its arguments by building it for a model of one weight.

    Raises:
        UserError: this version of transformers lacks the schedule, or the schedule lacks an argument, does not know
            one, or refuses its value.
    """
    name, given = options.lr_scheduler_type, scheduler_arguments(options)
    try:
        kind = SchedulerType(name)
    except ValueError:
        version = transformers.__version__
        raise UserError(
            f"{name} is not a schedule of transformers {version}: upgrade it", "lr_scheduler_type"
        ) from None
    known = _known_arguments(kind)
    for argument in given or {}:
        if argument not in known:
            ways_out = f"its arguments are {', '.join(known)}" if known else "it takes none"
            way_out = did_you_mean(argument, known, ways_out)
            raise UserError(f"{argument} is no argument of {name}: {way_out}", "lr_scheduler_kwargs")
    if kind is SchedulerType.WARMUP_STABLE_DECAY and "num_decay_steps" not in (given or {}):
        raise UserError(
            f"{name} needs the length of the decay: add --lr_scheduler_kwargs num_decay_steps=0.2, a share of the run, "
            "or a number of steps",
            "lr_scheduler_type",
        )
    try:
        _build(options, kind, given)
    except (TypeError, ValueError, ArithmeticError) as error:
        why = one_line(error)
        if not options.lr_scheduler_kwargs:
            raise UserError(f"{name} needs --lr_scheduler_kwargs: {why}", "lr_scheduler_type") from None
        raise UserError(
            f"{' '.join(options.lr_scheduler_kwargs)}: {name} refuses them: {why}", "lr_scheduler_kwargs"
        ) from None


def _known_arguments(kind: SchedulerType) -> list[str]:
    """Return the names of the arguments that a schedule takes."""
    if kind.value in ("constant", "constant_with_warmup"):
        return []
    makers: dict[str, Any] = {"reduce_lr_on_plateau": torch.optim.lr_scheduler.ReduceLROnPlateau}
    if kind.value == "greedy":
        makers["greedy"] = optimization.GreedyLR  # not in transformers 5.0
    maker: Any = makers.get(kind.value) or optimization.TYPE_TO_SCHEDULER_FUNCTION[kind]
    return [name for name in inspect.signature(maker).parameters if name not in FILLED_IN]


def _build(options: TrainingOptions, kind: SchedulerType, given: Mapping[str, Any] | None) -> None:
    """Build the schedule, and compute its rate at the start, in the middle and at the end."""
    steps = options.max_steps or SOME_STEPS
    warmup = options.warmup_steps
    schedule = optimization.get_scheduler(
        kind,
        torch.optim.SGD([torch.zeros(1)], lr=options.learning_rate),
        num_warmup_steps=int(warmup) if warmup >= 1 else math.ceil(warmup * steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=with_counts(given, steps),
    )
    if kind.value in BY_VALIDATION:
        schedule.step(1.0)
        schedule.step(2.0)
        return
    for step in (0, 1, steps // 2, steps):
        _check_factors(factor(step) for factor in schedule.lr_lambdas)


def _check_factors(factors: Iterable[float]) -> None:
    for factor in factors:
        if not 0 <= float(factor) < math.inf:
            raise ValueError(f"the learning rate would be multiplied by {factor}")
