"""Compare a resumed run with the one that wrote its checkpoint: they must agree on all that shapes the weights."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import GPT2LMHeadModel

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.errors import UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.options.entries import read_settings
from gpt2tg.training.console import log
from gpt2tg.training.data.training_data import TrainingData
from gpt2tg.training.fields import shaping_fields, without_secrets
from gpt2tg.training.output.durable import read_manifest

# Options that may differ: they change neither the data nor a step already taken, or their effect is compared instead.
MAY_DIFFER = {"train_file", "validation_file", "test_file", "output_dir", "resume", "resume_anyway", "overwrite"}
MAY_DIFFER |= {"revision", "dataset_name", "dataset_split", "dataset_revision", "dataset_streaming"}
MAY_DIFFER |= {"epochs", "max_steps", "early_stopping_patience", "eval_steps", "keep"}
MAY_DIFFER |= {"save_steps", "save_minutes", "save_total_limit", "logging_steps", "report_to"}
MAY_DIFFER |= {"cross_examples"}  # the resulting no_cross_examples is compared
MAY_DIFFER |= {"dry_run", "show_blocks", "auto_batch_size", "no_merge"}
MAY_DIFFER |= {"try_", "push_to_hub"}
MAY_DIFFER |= {"generate_samples", "sample_steps", "prompt", "num_samples"}

# Options that must agree even with --resume_anyway: otherwise the weights or the optimizer state would not fit.
MUST_AGREE = ("lora", "lora_rank", "lora_targets", "use_dora", "freeze_layers", "optim")

OTHER_WEIGHTS = "the model to start from has other weights"


def identity(
    options: TrainingOptions,
    model: GPT2LMHeadModel,
    tokenizer: TextTokenizer,
    is_new: bool,
    data: TrainingData,
    processes: int,
) -> dict[str, Any]:
    """Return what each checkpoint stores about its run, to be compared on resume. Call before any weight changes.

    Args:
        is_new: the model was initialised from the seed and the options, so its weights need no fingerprint.
        processes: how many processes train.
    """
    config = model.config
    shape = {name: getattr(config, name) for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}
    settings = {name: value for name, value in asdict(options).items() if name not in MAY_DIFFER}
    settings["no_cross_examples"] = data.is_apart
    settings["trainer"] = without_secrets(options.trainer)
    found = {
        "options": settings,
        "processes": processes,
        "shape": shape,
        "weights": None if is_new else fingerprint_of(model),
        "vocabulary": _vocabulary(tokenizer),
        "data": data.fingerprints,
    }
    stored: dict[str, Any] = json.loads(json.dumps(found))  # tuples become lists, as in a stored identity
    return stored


def like_before(options: TrainingOptions, checkpoint: Path) -> TrainingOptions:
    """Return the options of a resumed run, with examples packed as before unless a flag says how.

    Earlier versions of gpt2tg joined prompts with completions to one stream by default.
    """
    was_apart = read_manifest(checkpoint)["run"]["options"].get("no_cross_examples", False)
    if options.no_cross_examples or options.cross_examples or was_apart:
        return options
    return replace(options, cross_examples=True)


def fingerprint_of(model: GPT2LMHeadModel) -> str:
    """Return a hash of the weights' bits."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().flatten().numpy().data)
    return digest.hexdigest()[:32]


def _vocabulary(tokenizer: TextTokenizer) -> str:
    """Return a hash of the vocabulary: which id stands for which token."""
    return hashlib.sha256(repr(sorted(tokenizer.raw.get_vocab().items())).encode()).hexdigest()[:32]


def check_same_run(checkpoint: Path, now: dict[str, Any], anyway: bool) -> None:
    """Check that this run continues the run that wrote a checkpoint, maybe with another version of gpt2tg.

    Args:
        now: the identity of this run.
        anyway: log differences instead of refusing them, unless weights, tokenizer or optimizer would not fit.

    Raises:
        UserError: names all differences, with both values.
    """
    before = read_manifest(checkpoint)["run"]
    both_know = before["shape"].keys() & now["shape"].keys()
    then, here = ({name: size for name, size in run["shape"].items() if name in both_know} for run in (before, now))
    if then != here:
        raise UserError(
            f"cannot continue with another model: {_in_words(then)} then, {_in_words(here)} now; give the model, the "
            "sizes and the --add_tokens of the first run, or start over in another --output_dir",
            "resume",
        )
    if anyway and before.get("vocabulary", now["vocabulary"]) != now["vocabulary"]:
        raise UserError(
            "cannot continue with another tokenizer, whose ids stand for other words: give the --model_name of the "
            "first run (and its text, if it was trained --from_scratch), or start over in another --output_dir",
            "resume",
        )
    options_before, options_now = _options_of(before), _options_of(now)
    if anyway and (unfit := _option_differences(options_before, options_now, MUST_AGREE)):
        raise UserError(
            f"cannot continue: {'; '.join(unfit)}; give the same flags, or start over in another --output_dir",
            "resume",
        )
    found = _differences(before, now, options_before, options_now)
    if not found:
        return
    if not anyway:
        raise UserError(
            f"would not continue the same run: {'; '.join(found)}; give the same flags and files, or add "
            "--resume_anyway, or start over in another --output_dir",
            "resume",
        )
    log.warning(f"continuing although this differs: {'; '.join(found)}")
    for line in _differences_without_effect(found, bool(options_now["lora"])):
        log.warning(line)


def _differences_without_effect(found: list[str], has_adapter: bool) -> Iterator[str]:
    """Yield a line for each difference that comes too late, because the checkpoint holds what it would have changed."""
    if any(difference.startswith("--seed ") for difference in found):
        yield "--seed orders the text from here on; weights and random state are those of the checkpoint"
    if OTHER_WEIGHTS in found or any(difference.startswith("--from_scratch ") for difference in found):
        yield "the adapter now changes other weights" if has_adapter else "the weights are those of the checkpoint"


def _options_of(run: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a run that must agree.

    Options that its version of gpt2tg did not know have their defaults. Options that this version does not know count
    if they were set. Each --trainer field that shapes a step counts as an option.
    """
    defaults = json.loads(json.dumps(asdict(TrainingOptions())))
    given = {name: value for name, value in run["options"].items() if name in defaults or value}
    found = {name: value for name, value in {**defaults, **given}.items() if name not in MAY_DIFFER}
    fields = shaping_fields([str(entry) for entry in found.pop("trainer") or ()])
    found["lr_scheduler_kwargs"] = _scheduler_settings(
        found["lr_scheduler_kwargs"], fields.pop("lr_scheduler_kwargs", "")
    )
    return found | {f"trainer {name}": value for name, value in fields.items()}


def _scheduler_settings(entries: Iterable[str], earlier: str) -> dict[str, Any]:
    """Return the arguments of the schedule by name, so that 1e-5 and 0.00001 are equal.

    Args:
        earlier: the JSON of `--trainer lr_scheduler_kwargs=...`, where early versions had them.
    """
    with contextlib.suppress(ValueError):
        return dict(json.loads(earlier))
    return read_settings(entries, "lr_scheduler_kwargs", "min_lr_rate=0.1")


def _differences(
    before: dict[str, Any], now: dict[str, Any], options_before: dict[str, Any], options_now: dict[str, Any]
) -> list[str]:
    found = _option_differences(options_before, options_now, sorted({*options_before, *options_now}))
    if before["processes"] != now["processes"]:
        found.append(f"{now['processes']} processes now, {before['processes']} then")
    if before["weights"] != now["weights"]:
        found.append(OTHER_WEIGHTS)
    elif not found:  # different options or tokenizers also change the blocks, and are already named
        for name, fingerprint in before["data"].items():
            if now["data"].get(name) != fingerprint:
                found.append(f"the {name} text is another")
    return found


def _option_differences(before: dict[str, Any], now: dict[str, Any], names: Iterable[str]) -> list[str]:
    both = ((name, before.get(name), now.get(name)) for name in names)
    return [f"--{name} {given} now, {then} then" for name, then, given in both if then != given]


def _in_words(shape: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in shape.items())
