"""Check that a checkpoint fits the model and the optimizer that are to load it, and restore learning rates."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from gpt2tg.checkpoint.file_names import ADAPTER_WEIGHTS
from gpt2tg.errors import RunError, one_line
from gpt2tg.io.memory import is_out_of_memory
from gpt2tg.training.model.schedule_free import COUNTERS

# Names of the tables with which bitsandbytes reads its 8-bit moments. They have shapes of their own.
QUANTIZATION = ("qmap", "absmax")


class Damaged(RunError):
    """A checkpoint that matches its manifest, but does not fit this model."""


@contextlib.contextmanager
def raise_as_damage(checkpoint: str, part: str) -> Iterator[None]:
    """Turn any error of the block into `Damaged`, except running out of memory.

    Args:
        part: what the block loads, for the message.
    """
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise Damaged(f"{checkpoint} is damaged: {part} cannot be used: {one_line(error)}") from error


def check_adapter_fits(checkpoint: Path, model: PeftModel) -> None:
    """Check that a checkpoint holds exactly the tensors of this adapter: peft ignores missing ones.

    Raises:
        ValueError: it does not.
    """
    with safe_open(checkpoint / ADAPTER_WEIGHTS, framework="pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if different := sorted(set(found.items()) ^ set(expected.items())):
        raise ValueError(f"{different[0][0]} is missing, has another shape, or does not belong to the adapter")


def check_optimizer_fits(optimizer: Any) -> None:
    """Check that the optimizer has moments of the right shape for each weight: torch compares only their number.

    Raises:
        ValueError: it does not.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    for group in optimizer.param_groups:
        for weight in group["params"]:
            state, shape = optimizer.state.get(weight, {}), weight.shape
            if isinstance(optimizer, torch.optim.Adam) and not {"step", "exp_avg", "exp_avg_sq"} <= state.keys():
                raise ValueError("the moments of a weight are missing")
            # Adafactor keeps one value per row and column, AdEMAMix two moments in one tensor.
            fitting = (shape, shape[:-1], (*shape[:-2], *shape[-1:]), (2, *shape))
            for name, value in state.items():
                if not isinstance(value, Tensor) or not value.dim() or name.startswith(QUANTIZATION):
                    continue
                if value.shape not in fitting:
                    raise ValueError(f"it has a moment of shape {tuple(value.shape)} for a weight of {tuple(shape)}")


def settings_of(optimizer: Any) -> list[dict[str, Any]]:
    """Return the settings of each group of weights, without what the optimizer itself counts in the groups."""
    left_out = ("params", *COUNTERS)
    return [{name: value for name, value in group.items() if name not in left_out} for group in optimizer.param_groups]


def restore_settings(optimizer: Any, scheduler: Any, settings: list[dict[str, Any]]) -> None:
    """Give an optimizer that was loaded from a checkpoint the settings of this run, and the rate of its schedule.

    A schedule that follows the validation loss goes on from the rate of the checkpoint.

    Args:
        settings: as `settings_of` returned them before the checkpoint was loaded.
    """
    has_own_rate = not isinstance(scheduler, LambdaLR)
    for group, given in zip(optimizer.param_groups, settings, strict=True):
        rate = group["lr"]
        group.update(given)
        if has_own_rate:
            group["lr"] = rate
    if isinstance(scheduler, LambdaLR):
        _set_learning_rates(scheduler, optimizer)


def _set_learning_rates(scheduler: LambdaLR, optimizer: Any) -> None:
    """Set the learning rates of the next step to those of this run's schedule."""
    groups = optimizer.param_groups
    scheduler.base_lrs = [group["initial_lr"] for group in groups]
    factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
    rates = [base * factor for base, factor in zip(scheduler.base_lrs, factors, strict=True)]
    for group, rate in zip(groups, rates, strict=True):
        if isinstance(group["lr"], Tensor):  # torchao insists on it
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    scheduler._last_lr = rates
