"""Schedule-free optimizers train with other weights than those to evaluate and save.

The optimizers of the package schedulefree (https://arxiv.org/abs/2405.15682) compute gradients at one point, and
average weights at another. Their `eval` puts the average into the model, and `train` goes back, both with rounding. So
that neither an evaluation nor a checkpoint changes a run, the weights that are trained are kept meanwhile, and stored
in checkpoints beside the optimizer's state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# In the state of each weight in a checkpoint: the value at which the next gradient is computed.
TRAINED = "trained"

# What the optimizers count in their parameter groups. It is a state, not a setting.
COUNTERS = ("k", "train_mode", "weight_sum", "lr_max", "scheduled_lr")


@contextlib.contextmanager
def average_weights(optimizer: Any) -> Iterator[None]:
    """Put the weights to evaluate and to save into the model, for the time of the block.

    Does nothing for other optimizers, and before the first step.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    if optimizer is None or not any(group.get("train_mode") for group in optimizer.param_groups):
        yield
        return
    kept = [(weight, weight.detach().clone()) for weight in _weights(optimizer)]
    optimizer.eval()
    try:
        for weight, value in kept:
            optimizer.state[weight][TRAINED] = value
        yield
    finally:
        optimizer.train()
        _take_over(optimizer)


def restore_trained_weights(optimizer: Any) -> None:
    """Put the weights that are trained back into the model, after a checkpoint was loaded."""
    optimizer = getattr(optimizer, "optimizer", optimizer)
    if any(TRAINED in state for state in optimizer.state.values()):
        optimizer.train()
        _take_over(optimizer)


@torch.no_grad()
def _take_over(optimizer: torch.optim.Optimizer) -> None:
    for weight in _weights(optimizer):
        weight.copy_(optimizer.state[weight].pop(TRAINED))


def _weights(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """Yield the weights that have a state: those that a step has changed."""
    for group in optimizer.param_groups:
        yield from (weight for weight in group["params"] if optimizer.state.get(weight))
