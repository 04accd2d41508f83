"""What a resumed run must have in common with the run it goes on with, if it is to reach the same weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import GPT2LMHeadModel

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.errors import UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.training.callbacks import say
from gpt2tg.training.data.training_data import TrainingData
from gpt2tg.training.fields import shaping_fields, without_secrets
from gpt2tg.training.output.durable import read_manifest

# Options that change neither the data nor a step already taken, or are compared by what they lead to.
MAY_DIFFER = {"train_file", "validation_file", "output_dir", "resume", "resume_anyway", "overwrite"}
MAY_DIFFER |= {"epochs", "max_steps", "early_stopping_patience", "eval_steps", "keep"}
MAY_DIFFER |= {"save_steps", "save_total_limit", "logging_steps", "report_to"}
MAY_DIFFER |= {"dry_run", "show_blocks", "auto_batch_size", "no_merge"}
MAY_DIFFER |= {"try_", "push_to_hub"}
MAY_DIFFER |= {"generate_samples", "sample_steps", "prompt", "num_samples"}

# What is trained, and by which optimizer: what a checkpoint holds of these does not fit into others.
MUST_AGREE = ("lora", "lora_rank", "lora_targets", "freeze_layers", "optim")

OTHER_WEIGHTS = "the model to start from has other weights"


def identity(
    options: TrainingOptions,
    model: GPT2LMHeadModel,
    tokenizer: TextTokenizer,
    is_new: bool,
    data: TrainingData,
    processes: int,
) -> dict[str, Any]:
    """What each checkpoint keeps of its run.

    Args:
        is_new: the model was made from the seed and the options, which then stand for its weights.
    """
    config = model.config
    shape = {name: getattr(config, name) for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}
    settings = {name: value for name, value in asdict(options).items() if name not in MAY_DIFFER}
    settings["trainer"] = without_secrets(options.trainer)
    found = {
        "options": settings,
        "processes": processes,
        "shape": shape,
        "weights": None if is_new else fingerprint_of(model),
        "vocabulary": _vocabulary(tokenizer),
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


def _vocabulary(tokenizer: TextTokenizer) -> str:
    """Names what the ids stand for."""
    return hashlib.sha256(repr(sorted(tokenizer.raw.get_vocab().items())).encode()).hexdigest()[:32]


def check_same_run(checkpoint: Path, now: dict[str, Any], anyway: bool) -> None:
    """Compare with the run that wrote a checkpoint, which may have been one of another version of gpt2tg.

    Raises:
        UserError: names all that differs, with both values; with `anyway` only where weights or optimizer do not fit.
    """
    before = read_manifest(checkpoint)["run"]
    both_know = before["shape"].keys() & now["shape"].keys()
    then, here = ({name: size for name, size in run["shape"].items() if name in both_know} for run in (before, now))
    if then != here:
        raise UserError(f"cannot go on with another model: {_words(then)} then, {_words(here)} now", "resume")
    if anyway and before.get("vocabulary", now["vocabulary"]) != now["vocabulary"]:
        raise UserError(
            "cannot go on with another tokenizer, whose ids stand for other words: give the --model_name of the first "
            "run (and the same text where it was made --from_scratch), or start anew in another --output_dir",
            "resume",
        )
    options_before, options_now = _options_of(before), _options_of(now)
    if anyway and (unfit := _option_differences(options_before, options_now, MUST_AGREE)):
        raise UserError(
            f"cannot go on with this: {'; '.join(unfit)}; give the same flags, or start anew in another --output_dir",
            "resume",
        )
    found = _differences(before, now, options_before, options_now)
    if not found:
        return
    if not anyway:
        raise UserError(
            f"would not go on with the same run: {'; '.join(found)}; give the same flags and files, or add "
            "--resume_anyway, or start anew in another --output_dir",
            "resume",
        )
    say(f"going on with what differs from before: {'; '.join(found)}")
    for line in _what_stays(found, bool(options_now["lora"])):
        say(line)


def _what_stays(found: list[str], has_adapter: bool) -> Iterator[str]:
    """Say which of the differences come too late, because the checkpoint holds what they would have led to."""
    if any(difference.startswith("--seed ") for difference in found):
        yield "--seed orders the text from here on; weights and random state are those of the checkpoint"
    if OTHER_WEIGHTS in found or any(difference.startswith("--from_scratch ") for difference in found):
        yield "the adapter now changes other weights" if has_adapter else "the weights are those of the checkpoint"


def _options_of(run: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a run that are to agree, with defaults for those that its version of gpt2tg did not know.

    Of those that this version does not know, the ones that were set are kept. Each field in --trainer that shapes a
    step counts as an option of its own.
    """
    defaults = json.loads(json.dumps(asdict(TrainingOptions())))
    given = {name: value for name, value in run["options"].items() if name in defaults or value}
    found = {name: value for name, value in {**defaults, **given}.items() if name not in MAY_DIFFER}
    fields = shaping_fields([str(entry) for entry in found.pop("trainer") or ()])
    return found | {f"trainer {name}": value for name, value in fields.items()}


def _differences(
    before: dict[str, Any], now: dict[str, Any], options_before: dict[str, Any], options_now: dict[str, Any]
) -> list[str]:
    found = _option_differences(options_before, options_now, sorted({*options_before, *options_now}))
    if before["processes"] != now["processes"]:
        found.append(f"{now['processes']} processes now, {before['processes']} then")
    if before["weights"] != now["weights"]:
        found.append(OTHER_WEIGHTS)
    elif not found:  # what the blocks hold depends on the tokenizer and on the options too
        for name, fingerprint in before["data"].items():
            if now["data"].get(name) != fingerprint:
                found.append(f"the {name} text is another")
    return found


def _option_differences(before: dict[str, Any], now: dict[str, Any], names: Iterable[str]) -> list[str]:
    both = ((name, before.get(name), now.get(name)) for name in names)
    return [f"--{name} {given} now, {then} then" for name, then, given in both if then != given]


def _words(shape: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in shape.items())
