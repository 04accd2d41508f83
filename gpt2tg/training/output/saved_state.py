"""Check that the files of an intact checkpoint hold what a resumed run needs.

A matching manifest shows that the files have not changed, not that a run of ours wrote them. Each file is therefore
read and checked, as far as that works without the model, before anything is trained. Pickles are read by torch's
weights-only reader, which executes no code in them.
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
from gpt2tg.training.output.layout import OPTIMIZER_FILE, OUTPUT_LAYER, SCHEDULER_FILE, STATE_FILE, WEIGHTS

# Written by runs that compute in fp16.
SCALER_FILE = "scaler.pt"

# The entry of our own state among the `stateful_callbacks` in trainer_state.json.
OUR_STATE = "gpt2tg"

Check = Callable[[Any], bool]


def find_fault(checkpoint: Path) -> str | None:
    """Return the first file that a resumed run cannot use, with the reason; None if all are usable."""
    for path, check in _checks(checkpoint):
        try:
            check(path)
        except Exception as error:  # the content is untrusted: any library may raise anything
            return f"{path.name} cannot be used: {one_line(error)}"
    return None


def _checks(checkpoint: Path) -> Iterator[tuple[Path, Callable[[Path], None]]]:
    yield checkpoint / MANIFEST, _check_manifest
    yield checkpoint / STATE_FILE, _check_trainer_state
    if not is_adapter(checkpoint):  # an adapter is compared with its model when it is loaded
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


# Fields of a log entry, all optional. A gradient in 16 bits and a perplexity may overflow.
LOG_CHECKS: dict[str, Check] = dict.fromkeys(("epoch", "loss", "eval_loss", "learning_rate", "seconds"), _is_number)
LOG_CHECKS |= dict.fromkeys(("grad_norm", "eval_perplexity", "tokens_per_second", "memory_gb"), _is_number_or_nan)
LOG_CHECKS |= {"tokens": _is_count}


def _is_optional_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_a(kind: type) -> Check:
    return lambda value: isinstance(value, kind)


def _require(content: Any, checks: Mapping[Any, Check], where: str = "it") -> None:
    """Raise a ValueError unless the content has all fields that `checks` names, with valid values."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} is not a mapping")
    for name, check in checks.items():
        if name not in content:
            raise ValueError(f"{where} lacks {name}")
        if not check(content[name]):
            raise ValueError(f"{name} is {one_line(repr(content[name]), 40)}")


def _check_manifest(path: Path) -> None:
    content = read_object(path)
    _require(content, {"step": _is_count, "order": _is_count, "run": _is_a(dict)})
    if f"checkpoint-{content['step']}" != path.parent.name:
        raise ValueError(f"it belongs to checkpoint-{content['step']}")
    run = content["run"]
    fields: dict[str, Check] = dict.fromkeys(("options", "shape", "data"), _is_a(dict))
    fields |= {"processes": _is_count, "weights": _is_optional_text}
    _require(run, fields, "its run")
    _require(run["options"], dict.fromkeys({"trainer"} & run["options"].keys(), _is_a(list)), "its options")
    _require(run["shape"], dict.fromkeys(run["shape"], _is_count), "its shape")
    _require(run["data"], dict.fromkeys(run["data"], _is_optional_text), "its data")


def _check_trainer_state(path: Path) -> None:
    content = read_object(path)
    counts = ("global_step", "max_steps", "num_train_epochs", "num_input_tokens_seen")
    fields: dict[str, Check] = dict.fromkeys(counts, _is_count)
    fields |= dict.fromkeys(("epoch", "total_flos"), _is_number)
    fields |= {
        "log_history": _is_a(list),
        "stateful_callbacks": _is_a(dict),
        "best_model_checkpoint": _is_optional_text,
    }
    _require(content, fields)
    step = content["global_step"]
    if f"checkpoint-{step}" != path.parent.name:
        raise ValueError(f"its global_step is {step}")
    for entry in content["log_history"]:
        _require(entry, {"step": lambda value: _is_count(value) and value <= step}, "its log_history")
        _require(entry, {name: LOG_CHECKS[name] for name in LOG_CHECKS.keys() & entry.keys()})
    _require(content["stateful_callbacks"], {OUR_STATE: _is_a(dict)}, "its stateful_callbacks")
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
    # Generation accepts any prefix. The Trainer would ignore such tensors and continue with other weights.
    if strange := next((name for name in names if name != OUTPUT_LAYER and not name.startswith("transformer.")), None):
        raise ValueError(f"the tensor {strange} has a name that no run writes")
    for _ in stream_weights(checkpoint):
        pass  # reading a tensor that is not finite raises an error


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _check_optimizer(path: Path) -> None:
    content = _load(path)
    _require(content, {"state": _is_a(dict), "param_groups": _is_a(list)})
    for group in content["param_groups"]:
        _require(group, {"params": _is_a(list)}, "its param_groups")
    for state in content["state"].values():
        _require(state, {}, "its state")


def _check_scheduler(path: Path) -> None:
    content = _load(path)
    if isinstance(content, Mapping) and "num_bad_epochs" in content:  # it follows the validation loss
        _require(content, {"last_epoch": _is_count, "num_bad_epochs": _is_count, "best": _is_number_or_nan})
        return
    _require(content, {"last_epoch": _is_count, "base_lrs": _is_a(list), "lr_lambdas": _is_a(list)})
    if f"checkpoint-{content['last_epoch']}" != path.parent.name and not (path.parent / SCALER_FILE).is_file():
        raise ValueError(f"its last_epoch is {content['last_epoch']}")  # a scaler skips steps that overflow


def _check_scaler(path: Path) -> None:
    _require(_load(path), {})


def _check_random_state(path: Path) -> None:
    with safe_globals():  # type: ignore[no-untyped-call]  # not annotated
        content = torch.load(path, map_location="cpu", weights_only=True)
    _require(content, dict.fromkeys(("python", "numpy", "cpu"), lambda value: value is not None))
    random.Random().setstate(content["python"])
    np.random.RandomState().set_state(content["numpy"])
    torch.Generator().set_state(content["cpu"])
