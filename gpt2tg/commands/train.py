"""Train: fine-tune a model, or train a new one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2tg.commands.flags import Flags, notice_unused
from gpt2tg.io.processes import is_main_process
from gpt2tg.io.streams import notice
from gpt2tg.options import (
    FROM_SCRATCH_FLAGS,
    SCHEDULE_FREE_PREFIX,
    WITHOUT_BETA2,
    WITHOUT_WARMUP,
    DecodingOptions,
    DeviceOptions,
    ModelNameOptions,
    PromptOptions,
    TrainingOptions,
)

ADAPTER_FLAGS = ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "use_rslora", "use_dora", "no_merge")


@dataclass(frozen=True)
class TrainCommand:
    """Which model to train on what, and where."""

    model_name: str
    device: str
    training: TrainingOptions
    given: frozenset[str]

    @classmethod
    def from_flags(cls, flags: Flags, **defaults: Any) -> TrainCommand:
        """Build the command; `defaults` are those of the script, by option name.

        Raises:
            UserError: a value out of range, or flags that contradict each other.
        """
        name, device = flags.pick(ModelNameOptions).model_name, flags.pick(DeviceOptions).device
        return cls(name, device, flags.pick(TrainingOptions, **defaults), flags.names)


def train(command: TrainCommand) -> None:
    """Train as the options say, and print samples if they ask for some.

    Raises:
        UserError: a flag, a file or the model cannot be used.
        RunError: the run failed on its way.
        Interrupted: a signal ended the run.
    """
    options, name, device = command.training, command.model_name, command.device
    for flag, why in unused_flags(options).items():
        notice_unused(command.given, [flag], why)

    from gpt2tg.training.checks import advice_on_hub, check_training

    sources = check_training(options, name, device)
    if advice := advice_on_hub(options, name):
        notice(advice)
    if options.try_:
        from gpt2tg.training.search import search

        outcome = search(options, name, device)
    else:
        from gpt2tg.training.finetune import finetune

        outcome = finetune(options, name, device, sources=sources)
    if outcome is not None and options.generate_samples and is_main_process():
        is_chat = sources is not None and sources[0].corpus.chat_template is not None
        _write_samples(options, device, is_chat)


def unused_flags(options: TrainingOptions) -> dict[str, str]:
    """Return the flags that the other flags leave without effect, and why."""
    found: dict[str, str] = {}
    if options.from_scratch:
        found |= dict.fromkeys(("model_name", "revision"), "--from_scratch starts from a new model")
    else:
        found |= dict.fromkeys(FROM_SCRATCH_FLAGS, "it shapes a new model, which only --from_scratch makes")
    if not options.generate_samples and not options.sample_steps:
        why = "samples are written with --generate_samples or --sample_steps only"
        found |= dict.fromkeys(("prompt", "num_samples"), why)
    if options.dataset_name is None:
        flags = ("dataset_split", "dataset_revision", "dataset_streaming")
        found |= dict.fromkeys(flags, "it belongs to --dataset_name")
    elif Path(options.dataset_name).expanduser().is_dir():
        found["dataset_streaming"] = "the dataset is a folder on this machine"
    if not options.validation_file and not options.validation_split:
        found |= dict.fromkeys(("eval_steps", "keep"), "no validation text is held out")
    if options.validation_file:
        found["validation_split"] = "--validation_file is the validation text"
    if options.max_steps:
        found["epochs"] = "--max_steps decides when training ends"
    if options.try_:
        found |= dict.fromkeys(options.tried_settings()[0], "--try sets it")
    if not options.lora and not options.try_:
        found |= dict.fromkeys(ADAPTER_FLAGS, "only --lora trains an adapter")
    if options.optim in WITHOUT_BETA2:
        found["adam_beta2"] = f"--optim {options.optim} has no such average"
    kind = options.lr_scheduler_type
    if kind in WITHOUT_WARMUP and not options.optim.startswith(SCHEDULE_FREE_PREFIX):
        found["warmup_steps"] = f"--lr_scheduler_type {kind} has no warm-up, constant_with_warmup has"
    return found


def _write_samples(options: TrainingOptions, device: str, is_chat: bool) -> None:
    """Print samples of the model that the run has left in its output directory.

    Args:
        is_chat: whether it learned from conversations, so that the prompt is a question.
    """
    from gpt2tg.batch.jobs import plan_jobs
    from gpt2tg.batch.prompts import Prompt
    from gpt2tg.batch.writing import write_jobs
    from gpt2tg.generation.generator import load

    generator = load(options.output_dir, device, "output_dir")
    decoding = DecodingOptions(num_sequences=options.num_samples, seed=options.seed)
    messages = ({"role": "user", "content": options.prompt},) if is_chat else ()
    jobs = plan_jobs(generator, [Prompt(options.prompt, messages=messages)], decoding, None, notice)
    write_jobs(generator, jobs, PromptOptions(), None, notice)
