"""transformers' Trainer with Muon, schedules in shares of the run, and settings that a resumed run may change."""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import GPT2LMHeadModel

from gpt2tg.training.hub_trainer import HubTrainer
from gpt2tg.training.model.muon import muon_and_adamw
from gpt2tg.training.model.schedule_free import restore_trained_weights
from gpt2tg.training.output.restoring import check_optimizer_fits, raise_as_damage, restore_settings, settings_of
from gpt2tg.training.schedules import with_counts


class OptimizerTrainer(HubTrainer):
    """Sets up the optimizer and its schedule, and loads their state from a checkpoint."""

    def __init__(self, *, uses_muon: bool, **settings: Any) -> None:
        """Set up the trainer.

        Args:
            uses_muon: the optimizer is Muon; else the one that the arguments name.
            settings: arguments of the base classes.
        """
        super().__init__(**settings)
        self._uses_muon = uses_muon

    @property
    def _network(self) -> GPT2LMHeadModel:
        """The model, or the PeftModel around it, which has the same attributes."""
        return cast(GPT2LMHeadModel, self.model)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Set up the optimizer: that of transformers, or Muon, which transformers does not have."""
        if self.optimizer is None and self._uses_muon:
            network: torch.nn.Module = self._network if model is None else model
            self.optimizer = muon_and_adamw(
                network,
                self.get_decay_parameter_names(network),
                learning_rate=self.args.learning_rate,
                weight_decay=self.args.weight_decay,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                epsilon=self.args.adam_epsilon,
            )
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Set up the schedule, whose arguments may be shares of the run."""
        if isinstance(self.args.lr_scheduler_kwargs, dict):
            self.args.lr_scheduler_kwargs = with_counts(self.args.lr_scheduler_kwargs, num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the optimizer's moments and the position in the schedule, but keep the settings of this run.

        They differ from the stored ones after --resume_anyway, or if the length of the run has changed. transformers
        would take the stored ones.

        Raises:
            Damaged: the state does not fit this model's optimizer.
        """
        if checkpoint is None or self.optimizer is None or self.lr_scheduler is None:
            return
        settings = settings_of(self.optimizer)
        with raise_as_damage(checkpoint, "the state of its optimizer"):
            super()._load_optimizer_and_scheduler(checkpoint)
            if not self.is_fsdp_enabled:
                check_optimizer_fits(self.optimizer)
        restore_settings(self.optimizer, self.lr_scheduler, settings)
        restore_trained_weights(self.optimizer)
