"""Whether the files of an intact checkpoint hold what a run needs to go on.

A manifest that matches shows that the files are those that were sealed, not that a run of ours wrote them. Each file is
therefore read, and what can be tried without a model is tried, before anything is trained. Pickles are read by torch's
weights-only reader, which runs nothing that stands in them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import TrainerState
from transformers.trainer_pt_utils import safe_globals

from gpt2tg.checkpoint.adapters import is_adapter
from gpt2tg.checkpoint.checkpoint import read_checkpoint
from gpt2tg.checkpoint.runs import MANIFEST
from gpt2tg.checkpoint.weights import stream_weights
from gpt2tg.errors import one_line
from gpt2tg.io.json_files import read_object
from gpt2tg.training.output.directory import OPTIMIZER_FILE, OUTPUT_LAYER, SCHEDULER_FILE, STATE_FILE, WEIGHTS

# There where a run computed in 16 bits on a GPU.
SCALER_FILE = "scaler.pt"

# Under this name our part of the state stands in the trainer_state.json of a checkpoint.
OUR_STATE = "gpt2tg"

Check = Callable[[Any], bool]


def find_fault(checkpoint: Path) -> str | None:
    """Return which file keeps a run from going on from a checkpoint, and why; None where all can be used."""
    for path, check in _checks(checkpoint):
        try:
            check(path)
        except Exception as error:  # foreign content can fail in any way
            return f"{path.name} cannot be used: {one_line(error)}"
    return None


def _checks(checkpoint: Path) -> Iterator[tuple[Path, Callable[[Path], None]]]:
    yield checkpoint / MANIFEST, _check_manifest
    yield checkpoint / STATE_FILE, _check_trainer_state
    if not is_adapter(checkpoint):  # one is compared with its model when that is there
        yield checkpoint / WEIGHTS, _check_weights
    if (checkpoint / OPTIMIZER_FILE).is_file():
        yield checkpoint / OPTIMIZER_FILE, _check_optimizer
    yield checkpoint / SCHEDULER_FILE, _check_scheduler
    if (checkpoint / SCALER_FILE).is_file():
        yield checkpoint / SCALER_FILE, _check_scaler
    for path in sorted(checkpoint.glob("rng_state*.pth")):
        yield path, _check_random_state


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_number_or_nan(value: Any) -> bool:
    return type(value) in (int, float)


# Of an entry of the log, where it holds them. A gradient in 16 bits may overflow, and so may a perplexity.
CHECKS_OF_LOG: dict[str, Check] = dict.fromkeys(("epoch", "loss", "eval_loss", "learning_rate", "seconds"), _is_number)
CHECKS_OF_LOG |= dict.fromkeys(("grad_norm", "eval_perplexity", "tokens_per_second", "memory_gb"), _is_number_or_nan)
CHECKS_OF_LOG |= {"tokens": _is_count}


def _is_name(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is(kind: type) -> Check:
    return lambda value: isinstance(value, kind)


def _require(content: Any, checks: Mapping[Any, Check], where: str = "it") -> None:
    """Raises ValueError unless all fields are there, and hold what they are to hold."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} holds no named values")
    for name, check in checks.items():
        if name not in content:
            raise ValueError(f"{where} lacks {name}")
        if not check(content[name]):
            raise ValueError(f"{name} is {one_line(repr(content[name]), 40)}")


def _check_manifest(path: Path) -> None:
    content = read_object(path)
    _require(content, {"step": _is_count, "order": _is_count, "run": _is(dict)})
    if f"checkpoint-{content['step']}" != path.parent.name:
        raise ValueError(f"it is that of checkpoint-{content['step']}")
    run = content["run"]
    fields = {"options": _is(dict), "processes": _is_count, "shape": _is(dict), "weights": _is_name, "data": _is(dict)}
    _require(run, fields, "its run")
    _require(run["options"], dict.fromkeys({"trainer"} & run["options"].keys(), _is(list)), "its options")
    _require(run["shape"], dict.fromkeys(run["shape"], _is_count), "its shape")
    _require(run["data"], dict.fromkeys(run["data"], _is_name), "its data")


def _check_trainer_state(path: Path) -> None:
    content = read_object(path)
    counts = ("global_step", "max_steps", "num_train_epochs", "num_input_tokens_seen")
    fields = dict.fromkeys(counts, _is_count) | dict.fromkeys(("epoch", "total_flos"), _is_number)
    fields |= {"log_history": _is(list), "stateful_callbacks": _is(dict), "best_model_checkpoint": _is_name}
    _require(content, fields)
    step = content["global_step"]
    if f"checkpoint-{step}" != path.parent.name:
        raise ValueError(f"its global_step is {step}")
    for entry in content["log_history"]:
        _require(entry, {"step": lambda value: _is_count(value) and value <= step}, "its log_history")
        _require(entry, {name: CHECKS_OF_LOG[name] for name in CHECKS_OF_LOG.keys() & entry.keys()})
    _require(content["stateful_callbacks"], {OUR_STATE: _is(dict)}, "its stateful_callbacks")
    ours = content["stateful_callbacks"][OUR_STATE]
    _require(
        ours,
        {
            "loss_sums": lambda sums: isinstance(sums, list) and bool(sums) and all(map(_is_number, sums)),
            "logged_step": lambda value: _is_count(value) and value <= step,
            "seconds": lambda value: _is_number(value) and value >= 0,
        },
    )
    TrainerState(**content)


def _check_weights(path: Path) -> None:
    checkpoint = read_checkpoint(path.parent)
    shape = checkpoint.shape
    for name, size in read_object(path.parent / MANIFEST)["run"]["shape"].items():
        if getattr(shape, name) != size:
            raise ValueError(f"{name} is {getattr(shape, name)} in its config.json, and {size} in {MANIFEST}")
    with safe_open(path, "pt") as file:
        names = list(file.keys())
    # Generating reads names behind any prefix; the Trainer would pass them over and go on with other weights.
    if strange := next((name for name in names if name != OUTPUT_LAYER and not name.startswith("transformer.")), None):
        raise ValueError(f"the tensor {strange} has a name that no run writes")
    for _ in stream_weights(checkpoint):
        pass  # a tensor that is not finite is refused when it is read


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _check_optimizer(path: Path) -> None:
    content = _load(path)
    _require(content, {"state": _is(dict), "param_groups": _is(list)})
    for group in content["param_groups"]:
        _require(group, {"params": _is(list)}, "its param_groups")
    for state in content["state"].values():
        _require(state, {}, "its state")


def _check_scheduler(path: Path) -> None:
    content = _load(path)
    _require(content, {"last_epoch": _is_count, "base_lrs": _is(list), "lr_lambdas": _is(list)})
    if f"checkpoint-{content['last_epoch']}" != path.parent.name and not (path.parent / SCALER_FILE).is_file():
        raise ValueError(f"its last_epoch is {content['last_epoch']}")  # a scaler passes over steps that overflow


def _check_scaler(path: Path) -> None:
    _require(_load(path), {})


def _check_random_state(path: Path) -> None:
    with safe_globals():
        content = torch.load(path, map_location="cpu", weights_only=True)
    _require(content, dict.fromkeys(("python", "numpy", "cpu"), lambda value: value is not None))
    random.Random().setstate(content["python"])
    np.random.RandomState().set_state(content["numpy"])
    torch.Generator().set_state(content["cpu"])
