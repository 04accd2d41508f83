"""What a resumed run must have in common with the run it goes on with, if it is to reach the same weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import GPT2LMHeadModel

from gpt2tg.errors import UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.training.callbacks import say
from gpt2tg.training.data import TrainingData
from gpt2tg.training.durable import read_manifest

# Options that change neither the data nor a step already taken, or are compared by what they lead to.
MAY_DIFFER = {"train_file", "validation_file", "output_dir", "resume", "resume_anyway", "overwrite"}
MAY_DIFFER |= {"epochs", "max_steps", "early_stopping_patience", "eval_steps", "keep"}
MAY_DIFFER |= {"save_steps", "save_total_limit", "logging_steps", "report_to"}
MAY_DIFFER |= {"dry_run", "show_blocks", "auto_batch_size", "no_merge"}
MAY_DIFFER |= {"try_", "push_to_hub"}
MAY_DIFFER |= {"generate_samples", "sample_steps", "prompt", "num_samples"}

# What is trained, and by which optimizer: what a checkpoint holds of these does not fit into others.
MUST_AGREE = ("lora", "lora_rank", "lora_targets", "freeze_layers", "optim")


def identity(
    options: TrainingOptions, model: GPT2LMHeadModel, is_new: bool, data: TrainingData, processes: int
) -> dict[str, Any]:
    """What each checkpoint keeps of its run.

    Args:
        is_new: the model was made from the seed and the options, which then stand for its weights.
    """
    config = model.config
    shape = {name: getattr(config, name) for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}
    settings = {name: value for name, value in asdict(options).items() if name not in MAY_DIFFER}
    found = {
        "options": settings,
        "processes": processes,
        "shape": shape,
        "weights": None if is_new else fingerprint_of(model),
        "data": data.fingerprints,
    }
    return json.loads(json.dumps(found))  # as it will be read


def fingerprint_of(model: GPT2LMHeadModel) -> str:
    """Names the weights by their bits."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().flatten().numpy().data)
    return digest.hexdigest()[:32]


def check_same_run(checkpoint: Path, now: dict[str, Any], anyway: bool) -> None:
    """Compare with the run that wrote a checkpoint.

    Raises:
        UserError: names all that differs, with both values; with `anyway` only where weights or optimizer do not fit.
    """
    before = read_manifest(checkpoint)["run"]
    if before["shape"] != now["shape"]:
        raise UserError(
            f"cannot go on with another model: {_words(before['shape'])} then, {_words(now['shape'])} now", "resume"
        )
    if anyway and (unfit := _option_differences(before, now, MUST_AGREE)):
        raise UserError(
            f"cannot go on with this: {'; '.join(unfit)}; give the same flags, or start anew in another --output_dir",
            "resume",
        )
    found = list(_differences(before, now))
    if not found:
        return
    if not anyway:
        raise UserError(
            f"would not go on with the same run: {'; '.join(found)}; give the same flags and files, or add "
            "--resume_anyway, or start anew in another --output_dir",
            "resume",
        )
    say(f"going on with what differs from before: {'; '.join(found)}")


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    found = _option_differences(before, now, sorted({*before["options"], *now["options"]}))
    if before["processes"] != now["processes"]:
        found.append(f"{now['processes']} processes now, {before['processes']} then")
    if before["weights"] != now["weights"]:
        found.append("the model to start from has other weights")
    elif not found:  # what the blocks hold depends on the tokenizer and on the options too
        for name, fingerprint in before["data"].items():
            if now["data"].get(name) != fingerprint:
                found.append(f"the {name} text is another")
    return found


def _option_differences(before: dict[str, Any], now: dict[str, Any], names: Iterable[str]) -> list[str]:
    both = ((name, before["options"].get(name), now["options"].get(name)) for name in names)
    return [f"--{name} {given} now, {then} then" for name, then, given in both if then != given]


def _words(shape: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in shape.items())
