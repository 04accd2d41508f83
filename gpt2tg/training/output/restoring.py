"""What a model and its optimizer take from a checkpoint, and the checks that it fits them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from gpt2tg.checkpoint.file_names import ADAPTER_WEIGHTS
from gpt2tg.errors import RunError, one_line


class Damaged(RunError):
    """A checkpoint that is as it was sealed, and not what this model can be trained on from."""


@contextlib.contextmanager
def told_as_damage(checkpoint: str, what: str) -> Iterator[None]:
    """Turn whatever foreign content raises into `Damaged`; memory that ran out is no damage."""
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or should_reduce_batch_size(error):
            raise
        raise Damaged(f"{checkpoint} is broken: {what} cannot be used: {one_line(error)}") from error


def require_fitting_adapter(checkpoint: Path, model: PeftModel) -> None:
    """Raises ValueError unless a checkpoint holds the tensors of this adapter; peft passes over what it lacks."""
    with safe_open(checkpoint / ADAPTER_WEIGHTS, framework="pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    wanted = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if other := sorted(set(found.items()) ^ set(wanted.items())):
        raise ValueError(f"{other[0][0]} is missing, or of another shape, or none of the adapter's")


def require_fitting_state(optimizer: Any) -> None:
    """Raises ValueError unless each weight has moments of its shape. torch compares only how many weights there are."""
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    for group in optimizer.param_groups:
        for weight in group["params"]:
            state, shape = optimizer.state.get(weight, {}), weight.shape
            if isinstance(optimizer, torch.optim.Adam) and not {"step", "exp_avg", "exp_avg_sq"} <= state.keys():
                raise ValueError("it lacks the moments of a weight")
            fitting = (shape, shape[:-1], (*shape[:-2], *shape[-1:]))  # Adafactor keeps rows and columns alone
            for value in state.values():
                if isinstance(value, Tensor) and value.dim() and value.shape not in fitting:
                    raise ValueError(f"it holds a moment of shape {tuple(value.shape)} for a weight of {tuple(shape)}")


def set_rates(scheduler: LambdaLR, optimizer: Any) -> None:
    """Let the next step learn at the rate that the schedule of this run has for it."""
    groups = optimizer.param_groups
    scheduler.base_lrs = [group["initial_lr"] for group in groups]
    factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
    rates = [base * factor for base, factor in zip(scheduler.base_lrs, factors, strict=True)]
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates
