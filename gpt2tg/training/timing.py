"""Estimate the time of a training step by timing models of one and two layers on the device."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2tg.options import TrainingOptions
from gpt2tg.training.devices import preserved_random_state, synchronize
from gpt2tg.training.model.build import for_training
from gpt2tg.training.model.lora import choose_weights
from gpt2tg.training.model.muon import muon_and_adamw

# Steps that are timed; the first one, which warms up, does not count.
TIMED_STEPS = 4

Result = TypeVar("Result")


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a forward pass over a batch, of its backward pass, and of the optimizer's update."""

    forward: float
    backward: float
    update: float

    def step(self, options: TrainingOptions) -> float:
        """Return the seconds of an optimizer step with gradient accumulation."""
        return (self.forward + self.backward) * options.gradient_accumulation_steps + self.update


def measure_step_times(options: TrainingOptions, config: GPT2Config, device: torch.device) -> StepTimes:
    """Time models of one and of two trained layers on random tokens, and extrapolate to all layers.

    If layers are frozen, both models also have one frozen layer. Frozen layers take part in the forward pass only.
    """
    frozen = min(options.freeze_layers, 1)
    small = replace(options, freeze_layers=frozen)
    one, two = (_time_model(small, config, frozen + trained, device) for trained in (1, 2))
    more_layers = config.n_layer - frozen - 1
    more_trained = config.n_layer - options.freeze_layers - 1

    def extrapolate(of_one: float, of_two: float, more: int) -> float:
        return max(of_one + more * max(of_two - of_one, 0.0), 0.0)

    return StepTimes(
        forward=extrapolate(one.forward, two.forward, more_layers),
        backward=extrapolate(one.backward, two.backward, more_trained),
        update=extrapolate(one.update, two.update, more_trained),
    )


def _time_model(options: TrainingOptions, config: GPT2Config, layers: int, device: torch.device) -> StepTimes:
    """Return the shortest times of a few steps of a model with so many layers."""
    small = GPT2Config.from_dict({**config.to_dict(), "n_layer": layers, "use_cache": False})
    with preserved_random_state(device):
        model: torch.nn.Module = choose_weights(for_training(GPT2LMHeadModel(small)), options, "-")
        model.to(device).train()
        ids = torch.randint(small.vocab_size, (options.batch_size, options.block_size), device=device)
        optimizer = _optimizer(model, options)
        half = torch.bfloat16 if options.bf16 else torch.float16 if options.fp16 else None

        def forward() -> torch.Tensor:
            with torch.autocast(device.type, half, enabled=half is not None):
                loss: torch.Tensor = model(input_ids=ids, labels=ids).loss
            return loss

        times = []
        for _ in range(TIMED_STEPS):
            loss, forward_time = _timed(forward, device)
            _, backward_time = _timed(loss.backward, device)
            _, update_time = _timed(optimizer.step, device)
            optimizer.zero_grad()
            if options.gradient_checkpointing:  # the backward pass repeats the forward pass
                backward_time += forward_time
            times.append((forward_time, backward_time, update_time))
    return StepTimes(*map(min, *times[1:]))


def _optimizer(model: torch.nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    """Return Muon, or AdamW for all other optimizers: their updates take about as long."""
    if options.optim == "muon":
        return muon_and_adamw(model, (), learning_rate=1e-3, weight_decay=0, betas=(0.9, 0.999), epsilon=1e-8)
    return torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], fused=True)


def _timed(work: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    """Call a function, and return its result and the seconds until the device has finished."""
    started = time.perf_counter()
    result = work()
    synchronize(device)
    return result, time.perf_counter() - started
