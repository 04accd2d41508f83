"""The options of a training run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from gpt2tg.errors import UserError
from gpt2tg.options.model import RevisionOptions
from gpt2tg.options.new_model import NewModelOptions
from gpt2tg.options.optimization import OptimizationOptions, whole_if_possible
from gpt2tg.options.selection import SelectionOptions
from gpt2tg.options.training_data import TrainingDataOptions
from gpt2tg.options.training_run import NEWEST, TrainingRunOptions
from gpt2tg.options.trials import read_trials


# The fields of the last base come first in the help: the text, the run, its steps.
@dataclass(frozen=True)
class TrainingOptions(
    NewModelOptions, OptimizationOptions, TrainingRunOptions, SelectionOptions, TrainingDataOptions, RevisionOptions
):
    """A training run: from text files to a checkpoint directory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fp16 and self.bf16:
            raise UserError("and --bf16 contradict each other: give one of the two", "fp16")
        if self.cross_examples and self.no_cross_examples:
            raise UserError("and --no_cross_examples contradict each other: give one of the two", "cross_examples")
        if self.lora and (self.from_scratch or self.freeze_layers):
            other = "from_scratch" if self.from_scratch else "freeze_layers"
            raise UserError(f"and --{other} contradict each other: give one of the two", "lora")
        self._check_dataset()
        if self.load_in_4bit and not self.lora:
            raise UserError("needs --lora: weights in 4 bits are frozen, and an adapter is trained", "load_in_4bit")
        if self.add_tokens and self.freeze_layers:
            raise UserError("and --freeze_layers contradict each other: it freezes the embeddings", "add_tokens")
        if "" in self.add_tokens:
            raise UserError("holds an empty token: leave it out", "add_tokens")
        self._check_resuming()
        self._check_validation()
        self._check_new_model()
        self.tries()

    def _check_dataset(self) -> None:
        if self.dataset_name is not None and self.train_file:
            raise UserError("and --train_file contradict each other: give one of the two", "dataset_name")
        if self.dataset_streaming and self.from_scratch:
            raise UserError(
                "needs a tokenizer before the text comes, but --from_scratch trains one on the text: leave one out",
                "dataset_streaming",
            )

    def _check_resuming(self) -> None:
        if self.resume and self.overwrite:
            raise UserError("and --overwrite contradict each other: give one of the two", "resume")
        if self.resume_anyway and not self.resume:
            raise UserError("does nothing without --resume: give both", "resume_anyway")
        if self.try_ and self.resume not in (None, NEWEST):
            raise UserError(f"{self.resume}: --try resumes all its trials: give the flag without a path", "resume")
        if self.try_ and self.push_to_hub:
            raise UserError("and --try contradict each other: upload the best model afterwards", "push_to_hub")

    def _check_validation(self) -> None:
        if self.validation_split or self.validation_file:
            return
        if self.max_eval_examples:
            raise UserError(
                f"{self.max_eval_examples} needs a validation text: leave out --validation_split 0", "max_eval_examples"
            )
        if self.early_stopping_patience:
            raise UserError(
                f"{self.early_stopping_patience} needs a validation loss: leave out --validation_split 0",
                "early_stopping_patience",
            )
        if self.try_:
            raise UserError("needs a validation loss: leave out --validation_split 0", "try")
        if self.follows_validation:
            raise UserError(
                f"{self.lr_scheduler_type} needs a validation loss: leave out --validation_split 0", "lr_scheduler_type"
            )

    def _check_new_model(self) -> None:
        if not self.from_scratch:
            return
        if self.n_embd % self.n_head:
            raise UserError(
                f"{self.n_embd} is not a multiple of --n_head {self.n_head}: change one of the two", "n_embd"
            )
        if self.block_size > self.n_positions:
            raise UserError(
                f"{self.block_size} is over the context length of the new model, {self.n_positions}: "
                "lower it, or raise --n_positions",
                "block_size",
            )

    @property
    def seed_of_split(self) -> int:
        """The seed that decides what is held out."""
        return self.seed if self.split_seed is None else self.split_seed

    def tries(self) -> list[TrainingOptions]:
        """Return the options of each trial of `try_`; the values of the last setting change fastest.

        Raises:
            UserError: an entry of `try_` is not a name with values, or names a setting that cannot be tried.
        """
        return [dataclasses.replace(self, try_=(), **settings) for settings in self.tried_settings()]

    def tried_settings(self) -> list[dict[str, Any]]:
        """Return the settings by which the trials of `try_` differ, in their order; none without `try_`."""
        if not self.try_:
            return []
        allowed = [name for name in TRIABLE if self.from_scratch or name not in FROM_SCRATCH_FLAGS]
        found = read_trials(TrainingOptions, self.try_, allowed)
        for settings in found:
            if "warmup_steps" in settings:
                settings["warmup_steps"] = whole_if_possible(settings["warmup_steps"])
        return found


# Flags of a new model: they do nothing when an existing one is fine-tuned.
FROM_SCRATCH_FLAGS = tuple(f.name for f in dataclasses.fields(TrainingOptions) if f.metadata["group"] == "from scratch")

# Settings of the training that leave the validation text and its tokens as they are, so that losses can be compared.
TRIABLE = tuple(
    f.name
    for f in dataclasses.fields(TrainingOptions)
    if f.name == "block_size" or f.metadata["group"] in ("training", "memory", "from scratch")
    if f.name
    not in (
        "try_",
        "trainer",
        "from_scratch",
        "vocab_size",
        "compile",
        "auto_batch_size",
        "no_merge",
        "lora_targets",
        "lr_scheduler_kwargs",
    )
)
