"""Schedules and optimizers of transformers by name, and their arguments."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.errors import UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.training import checks
from gpt2tg.training.arguments import training_arguments
from gpt2tg.training.model.optimizer_memory import optimizer_bytes
from gpt2tg.training.model.schedule_free import average_weights, restore_trained_weights
from gpt2tg.training.optimizer_trainer import OptimizerTrainer
from gpt2tg.training.pruning import _schedule
from gpt2tg.training.schedules import check_schedule


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("cosine_with_min_lr", "min_lr_rat=0.1"), "min_lr_rat is no argument of cosine_with_min_lr: did you mean min"),
        (("cosine_with_min_lr",), "type cosine_with_min_lr needs --lr_scheduler_kwargs: One of min_lr or min_lr_rate"),
        (("cosine_with_min_lr", "min_lr_rate=low"), "min_lr_rate=low: cosine_with_min_lr refuses them: "),
        (("constant", "num_cycles=2"), "num_cycles is no argument of constant: it takes none"),
        (("warmup_stable_decay",), "warmup_stable_decay needs the length of the decay: add --lr_scheduler_kwargs num"),
        (("reduce_lr_on_plateau", "factor=2"), "factor=2: reduce_lr_on_plateau refuses them: Factor should be < 1.0"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_arguments_of_a_schedule_are_refused(settings: tuple[str, ...], message: str) -> None:
    name, *arguments = settings
    with pytest.raises(UserError) as error:
        check_schedule(TrainingOptions(lr_scheduler_type=name, lr_scheduler_kwargs=tuple(arguments)))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        # Warm-up over a fifth of 10 steps, then a decay over the last 40 %, each along a line.
        (
            dict(
                lr_scheduler_type="warmup_stable_decay", warmup_steps=0.2,
                lr_scheduler_kwargs=("num_decay_steps=0.4", "decay_type=linear"),
            ),
            [0, 0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25],
        ),
        (
            dict(
                lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs="min_lr_rate=0.1", warmup_steps=2,
            ),
            [0, 0.5, *(0.1 + 0.9 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(8))],
        ),
    ],
    ids=["shares", "cosine"],
)  # fmt: skip
def test_learning_rates_follow_the_schedule(settings: dict, rates: list[float], tmp_path: Path) -> None:
    options = TrainingOptions(output_dir=str(tmp_path), max_steps=10, learning_rate=1.0, optim="sgd", **settings)
    trainer = OptimizerTrainer.__new__(OptimizerTrainer)
    trainer.args, trainer.lr_scheduler = training_arguments(options, torch.device("cpu")), None
    schedule = trainer.create_scheduler(10, torch.optim.SGD([torch.zeros(1)], lr=1.0))
    factors = [schedule.lr_lambdas[0](step) for step in range(10)]
    assert factors == pytest.approx(rates)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda module: None)
    for name, package in (("adamw_bnb_8bit", "bitsandbytes"), ("stable_adamw", "torch-optimi")):
        with pytest.raises(UserError, match=f"optim {name} needs the package {package}, .*: pip install {package}"):
            checks.check_package(name)
    checks.check_package("rmsprop")


def test_arguments_that_an_optimizer_cannot_read_are_refused(tmp_path: Path) -> None:
    options = TrainingOptions(output_dir=str(tmp_path), optim="sgd", trainer="optim_args=momentum")
    with pytest.raises(UserError, match="trainer optim_args=momentum: "):
        training_arguments(options, torch.device("cpu"))


@pytest.mark.parametrize(
    ("optim", "arguments"),
    [("adamw_torch", ""), ("adagrad", ""), ("adafactor", ""), ("sgd", "momentum=0.9"), ("rmsprop", "centered=true")],
)
def test_estimate_knows_the_state_of_each_optimizer(optim: str, arguments: str, tmp_path: Path) -> None:
    """The optimizer that transformers makes holds as many bytes after a step as are estimated."""
    config = GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=4, eos_token_id=0, bos_token_id=0)
    model = GPT2LMHeadModel(config)
    settings = TrainingArguments(
        str(tmp_path), optim=optim, optim_args=arguments or None, use_cpu=True, report_to="none"
    )
    optimizer = Trainer(model, settings).create_optimizer()
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    tensors = [
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    ]
    held = sum(tensor.nbytes for tensor in tensors if tensor.dim())
    shape = ModelShape(300, 64, 32, 2, 4, 128, "gelu_new", 1e-5, True, False, True, (0,))
    options = TrainingOptions(optim=optim, trainer=(f"optim_args={arguments}",) if arguments else ())
    assert optimizer_bytes(shape, [tuple(weight.shape) for weight in model.parameters()], options) == held


class Averaging(torch.optim.SGD):
    """A stand-in for the package schedulefree: `eval` averages with rounding, and `train` goes back."""

    def __init__(self, weights: Iterator[nn.Parameter]) -> None:
        super().__init__(weights, lr=0.1)
        for group in self.param_groups:
            group["train_mode"] = False

    def train(self) -> None:
        self._move(True, 0.3)

    def eval(self) -> None:
        self._move(False, 1 - 1 / 0.7)

    @torch.no_grad()
    def _move(self, mode: bool, share: float) -> None:
        for group in self.param_groups:
            if group["train_mode"] != mode:
                for weight in group["params"]:
                    weight.lerp_(self.state[weight].setdefault("z", torch.ones_like(weight)), share)
            group["train_mode"] = mode


def test_evaluation_and_checkpoints_leave_schedule_free_training_alone() -> None:
    layer = nn.Linear(50, 50)
    optimizer = Averaging(layer.parameters())
    with average_weights(optimizer):  # before the first step
        pass
    optimizer.train()
    trained = layer.weight.clone()
    with average_weights(optimizer):
        average, state = layer.weight.clone(), optimizer.state_dict()
        saved = {**state, "state": {number: dict(of_weight) for number, of_weight in state["state"].items()}}
    assert not torch.allclose(average, trained)
    assert torch.equal(layer.weight, trained)
    resumed = nn.Linear(50, 50)
    resumed.load_state_dict({"weight": average, "bias": layer.bias})
    other = Averaging(resumed.parameters())
    other.load_state_dict(saved)
    restore_trained_weights(other)
    assert torch.equal(resumed.weight, trained)
    assert [group["train_mode"] for group in other.param_groups] == [True]


def test_trials_with_other_warm_ups_are_not_compared() -> None:
    def schedule(**settings: object) -> object:
        return _schedule(TrainingOptions(lr_scheduler_type="constant_with_warmup", **settings))

    assert schedule(epochs=2, warmup_steps=5) == schedule(epochs=4, warmup_steps=5)
    assert schedule(epochs=2, warmup_steps=0.1) != schedule(epochs=4, warmup_steps=0.1)
