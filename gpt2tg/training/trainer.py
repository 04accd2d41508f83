"""transformers' Trainer with our guarantees: exact losses, intact checkpoints, and bit-exact resuming."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import GPT2LMHeadModel

from gpt2tg.errors import Interrupted
from gpt2tg.inspection.perplexity import perplexity
from gpt2tg.io.json_files import read_object
from gpt2tg.training.compiling import uncompiled
from gpt2tg.training.data.batches import count_tokens
from gpt2tg.training.data.blocks import NO_LOSS
from gpt2tg.training.devices import memory_gb, preserved_random_state
from gpt2tg.training.failures import NotFinite
from gpt2tg.training.hub_trainer import HubTrainer
from gpt2tg.training.interruption import Interruption, SignalConsensus
from gpt2tg.training.log_history import best_step, held_step, is_evaluation_due
from gpt2tg.training.model.muon import muon_and_adamw
from gpt2tg.training.output.cleanup import remove_unfinished
from gpt2tg.training.output.durable import UNFINISHED
from gpt2tg.training.output.layout import CARD_FILE, OUTPUT_LAYER, STATE_FILE, make_readable
from gpt2tg.training.output.random_states import (
    load_random_states,
    random_state_file,
    random_states,
    save_random_states,
)
from gpt2tg.training.output.restoring import (
    check_adapter_fits,
    check_optimizer_fits,
    raise_as_damage,
    set_learning_rates,
)
from gpt2tg.training.output.run_directory import RunDirectory
from gpt2tg.training.output.saved_state import OUR_STATE
from gpt2tg.training.processes import gather_on_main_process
from gpt2tg.training.progress import evaluation_bar
from gpt2tg.training.stopwatch import Stopwatch
from gpt2tg.training.totals import LossTotal, TokenTotal


class LanguageTrainer(HubTrainer):
    """Trains on blocks of tokens, evaluates exactly, and saves checkpoints that a run can resume from."""

    def __init__(
        self,
        *,
        directory: RunDirectory,
        identity: dict[str, Any],
        keep: str,
        eval_steps: int | None,
        uses_muon: bool,
        stopwatch: Stopwatch,
        interruption: Interruption,
        pad_id: int,
        **settings: Any,
    ) -> None:
        """Set up the trainer.

        Args:
            identity: what a resumed run must have in common with this one; each checkpoint stores it.
            keep: "best" or "last": whose model the directory itself holds.
            pad_id: the token that pads short blocks.
            settings: arguments of transformers' Trainer.
        """
        super().__init__(directory=directory, **settings)
        if self.accelerator.ddp_handler is not None:  # otherwise each process holds its gradients twice
            self.accelerator.ddp_handler.gradient_as_bucket_view = True
        self._identity = identity
        self._pad_id = pad_id
        self._keep = keep
        self._eval_steps = eval_steps
        self._uses_muon = uses_muon
        self.stopwatch = stopwatch
        self._interruption = interruption
        self.signals = SignalConsensus(self.accelerator, interruption)
        self._losses = LossTotal(self.accelerator)
        self._tokens = TokenTotal(self.accelerator)
        self._is_saving = False
        self._first_step = 0
        self._resumed_from: str | None = None
        self._last_step: dict[str, float] = {}  # gradient norm and learning rate of the last step
        self.has_saved = False

    @property
    def _network(self) -> GPT2LMHeadModel:
        """The model, or the PeftModel around it, which has the same attributes."""
        return cast(GPT2LMHeadModel, self.model)

    def train(self, resume_from_checkpoint: str | None = None, **settings: Any) -> Any:  # type: ignore[override]
        """Train, from the start or from an intact checkpoint. Takes the path only, unlike transformers."""
        seconds = 0.0
        evaluates = self.eval_dataset is not None
        self.args.eval_on_start = evaluates
        self._resumed_from = resume_from_checkpoint
        if resume_from_checkpoint is not None:
            state = read_object(Path(resume_from_checkpoint) / STATE_FILE)
            ours = state["stateful_callbacks"][OUR_STATE]
            self._losses.restore(ours)
            self._last_step = ours.get("last_step", {})
            seconds, self._first_step = ours["seconds"], state["global_step"]
            # Checkpoints of early versions have no token count: assume full blocks.
            self._tokens.restore(ours.get("tokens", self._first_step * self.stopwatch.tokens_per_step))
            # The run may have been interrupted just before an evaluation.
            self.args.eval_on_start = evaluates and _lacks_evaluation(state, self._eval_steps)
        self.stopwatch.start(seconds, self._first_step, self._tokens.total())
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **settings)

    def is_interrupted(self) -> bool:
        """Whether any process received a signal. All processes must call this together."""
        return self.signals.is_interrupted()

    # --- a training step --------------------------------------------------------------------------------------

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *rest: Any, **settings: Any) -> Tensor:
        """Run a forward and a backward pass, and count loss and tokens, which checkpoints store."""
        self._tokens.add(count_tokens(inputs, self._pad_id))
        loss: Tensor = super().training_step(model, inputs, *rest, **settings)
        self._losses.add(loss, self.state.global_step + 1)
        return loss

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Return the gradient norm, and keep it with the learning rate: checkpoints store them for the log."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]  # not annotated
        self._last_step = {"grad_norm": norm, "learning_rate": self._get_learning_rate()}
        return norm

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

    def _run_epoch(self, **settings: Any) -> None:  # type: ignore[override]  # the Trainer passes all by name
        """Skip the epoch if the evaluation before it ended the run: transformers would take one more step."""
        if not self.control.should_training_stop:
            super()._run_epoch(**settings)  # type: ignore[no-untyped-call]  # not annotated

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return the operations of a batch. transformers counts the model's weights again at each step."""
        return self._operations_per_token * int(inputs["input_ids"].numel())

    @functools.cached_property
    def _operations_per_token(self) -> int:
        return int(super().floating_point_ops({"input_ids": torch.empty(1)}))

    def log(self, logs: dict[str, float], *rest: Any, **settings: Any) -> None:
        """Log an entry with our loss, token count, speed, time and memory.

        Raises:
            NotFinite: a loss since the last entry was not finite.
        """
        if "loss" in logs:
            self._losses.check_finite()
            logs["loss"] = self._losses.take_mean(self.state.global_step)
            logs["tokens"] = self._tokens.total()
            logs["tokens_per_second"] = self.stopwatch.tokens_per_second(int(logs["tokens"]))
            logs["seconds"] = self.stopwatch.seconds
            logs["memory_gb"] = memory_gb(self.args.device)
        super().log(logs, *rest, **settings)

    # --- evaluation -------------------------------------------------------------------------------------------

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Return loss and perplexity of the validation blocks, as means over tokens.

        Keeps two numbers per batch, and leaves the random state as it was. A signal ends the evaluation without a
        result, and the resumed run repeats it. The evaluation after the last step is always completed, because nothing
        is left to resume.

        Raises:
            NotFinite: the loss is not finite.
            Interrupted: a signal came before the first training step.
        """
        # Compiling it for evaluation as well would take longer than it saves.
        with self.stopwatch.paused(), preserved_random_state(self.args.device), uncompiled():
            self._network.train(False)
            total = torch.zeros(2, dtype=torch.float64)  # loss in nats, tokens
            for batch in evaluation_bar(self.get_eval_dataloader()):
                if self.state.global_step < self.state.max_steps and self.is_interrupted():
                    total.zero_()
                    break
                total += self._loss_and_tokens(batch)
            self._network.train()
        if not total[1]:
            self._stop_without_evaluation()
            return {}
        loss = float(total[0] / total[1])
        if not math.isfinite(loss):
            raise NotFinite("validation loss", self.state.global_step)
        metrics = {f"{metric_key_prefix}_loss": loss, f"{metric_key_prefix}_perplexity": perplexity(loss)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def _loss_and_tokens(self, batch: dict[str, Tensor]) -> Tensor:
        """Return (2,) the summed loss and the number of its tokens, over all processes."""
        batch["labels"][self._repeated_rows(len(batch["labels"]))] = NO_LOSS
        tokens = (batch["labels"][:, 1:] != NO_LOSS).sum()
        with self.compute_loss_context_manager():  # not compute_loss, which may smooth labels
            mean: Tensor = self._network(**self._prepare_inputs(batch)).loss
        total = torch.where(tokens > 0, mean.detach() * tokens, 0)
        both: Tensor = self.accelerator.reduce(torch.stack([total, tokens]).to(torch.float32))
        return both.cpu().double()

    def _repeated_rows(self, rows: int) -> Tensor:
        """Return (B,) which rows of the last batch accelerate repeated so that all processes have equally many."""
        real = self.accelerator.gradient_state.remainder
        if self.args.world_size == 1 or not self.accelerator.gradient_state.end_of_dataloader or real <= 0:
            return torch.zeros(rows, dtype=torch.bool)
        first = self.args.process_index * rows
        is_repeated: Tensor = torch.arange(first, first + rows) >= real
        return is_repeated

    def _stop_without_evaluation(self) -> None:
        """Save and stop, so that the resumed run evaluates; without any new step there is nothing to save."""
        if self.state.global_step > self._first_step:
            self.control.should_save = self.control.should_training_stop = True
            self.control.should_evaluate = False  # otherwise transformers tries again at the end of the epoch
            return
        way_out = "" if self._first_step else ": start again with --overwrite"
        number = self._interruption.signal or signal.SIGTERM
        raise Interrupted(f"interrupted before the first step{way_out}", number, is_saved=self._first_step > 0)

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        """Evaluate and, if the interrupted run had yet to evaluate, do what it would have done after that.

        transformers skips the scheduler only for the evaluation before the first step.
        """
        metrics: dict[str, float] = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        if skip_scheduler and self._resumed_from is not None:
            self._finish_interrupted_step(trial)
        return metrics

    def _finish_interrupted_step(self, trial: Any) -> None:
        if self.control.should_save:
            self._load_rng_state(self._resumed_from)  # transformers loads it only when the next step begins
            self._save_checkpoint(self.model_wrapped, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        if self.control.should_training_stop and self._losses.logged_step < self.state.global_step:
            self.log({"loss": 0.0, **self._last_step})  # `log` replaces the loss

    # --- saving -----------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write a checkpoint aside, rename it when it is complete, and only then remove older ones.

        Raises:
            NotFinite: a loss or a weight is not finite.
        """
        self._check_finite()
        with self.stopwatch.paused():
            # transformers annotates a list, and makes a dict of it.
            self.state.stateful_callbacks[OUR_STATE] = self._our_state()  # type: ignore[index, call-overload]
            try:
                with self._saving():
                    super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.is_world_process_zero():
                    self._publish(self.directory.path / UNFINISHED / f"checkpoint-{self.state.global_step}")
            except BaseException:
                with contextlib.suppress(OSError):
                    remove_unfinished(self.directory.path)
                raise
            self.accelerator.wait_for_everyone()
        self.has_saved = True

    def _check_finite(self) -> None:
        self._losses.check_finite()
        if not all(torch.isfinite(weight).all() for weight in self._network.parameters()):
            raise NotFinite("largest weight", self.state.global_step)

    def _our_state(self) -> dict[str, Any]:
        return {
            **self._losses.state(),
            "tokens": self._tokens.total(),
            "seconds": self.stopwatch.seconds,
            "last_step": {name: float(value) for name, value in self._last_step.items()},
        }

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        """Redirect what transformers saves to a draft. The saved config has the KV cache on: training turns it off."""
        self._is_saving = True
        config = self._network.config
        before, config.use_cache = config.use_cache, True
        try:
            yield
        finally:
            config.use_cache = before
            self._is_saving = False

    def _get_output_dir(self, trial: Any) -> str:
        directory = super()._get_output_dir(trial)
        return os.path.join(directory, UNFINISHED) if self._is_saving else directory

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save as transformers does, with three changes.

        FSDP gathers the tied output layer as a second copy of the embeddings: it is dropped. The stored arguments must
        not hold a hub token. An adapter gets the config that our reader needs, and no card of its own.
        """
        config = self._network.config
        if state_dict is not None and config.tie_word_embeddings:
            state_dict.pop(OUTPUT_LAYER, None)
        token, self.args.hub_token = self.args.hub_token, None
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token
        if isinstance(self.model, PeftModel) and output_dir is not None:
            (Path(output_dir) / CARD_FILE).unlink(missing_ok=True)
            config.save_pretrained(output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the random states of all processes from the first one: other machines may have other disks."""
        if states := gather_on_main_process(random_states(self.args.device)):
            save_random_states(Path(output_dir), states)

    def _publish(self, draft: Path) -> None:
        make_readable(draft)
        self.directory.add_checkpoint(draft, self.state.global_step, {"run": self._identity})
        self.directory.tidy(held_step(self.state, self._keep), best_step(self.state.log_history))
        self.push_after_save()

    # --- loading ----------------------------------------------------------------------------------------------

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Load the weights. transformers would ignore missing tensors, and those of other names.

        Raises:
            Damaged: the weights do not fit this model.
        """
        with raise_as_damage(resume_from_checkpoint, "its weights"):
            if isinstance(self.model, PeftModel):
                check_adapter_fits(Path(resume_from_checkpoint), self.model)
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the optimizer's moments and the position in the schedule, but keep the settings of this run.

        They differ from the stored ones after --resume_anyway, or if the length of the run has changed. transformers
        would take the stored ones.

        Raises:
            Damaged: the state does not fit this model's optimizer.
        """
        if checkpoint is None or self.optimizer is None or self.lr_scheduler is None:
            return
        groups = self.optimizer.param_groups
        settings = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        with raise_as_damage(checkpoint, "the state of its optimizer"):
            super()._load_optimizer_and_scheduler(checkpoint)
            if not self.is_fsdp_enabled:
                check_optimizer_fits(self.optimizer)
        for group, given in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(given)
        if isinstance(self.lr_scheduler, LambdaLR):
            set_learning_rates(self.lr_scheduler, self.optimizer)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        path = random_state_file(Path(checkpoint), self.args.process_index, self.args.world_size)
        if path.is_file():
            with raise_as_damage(checkpoint, "its random states"):
                load_random_states(path, self.args.device)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with raise_as_damage(str(checkpoint), "the state of its loss scaler"):
            super()._load_scaler(checkpoint)


def _lacks_evaluation(state: dict[str, Any], eval_steps: int | None) -> bool:
    """Whether a checkpoint was saved before an evaluation that was due at its step."""
    step = state["global_step"]
    is_evaluated = any("eval_loss" in entry and entry["step"] == step for entry in state["log_history"])
    return not is_evaluated and is_evaluation_due(step, state["epoch"], state["max_steps"], eval_steps)
