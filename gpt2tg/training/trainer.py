"""The Trainer of transformers with our promises: exact losses, whole checkpoints, resumed runs equal to the bit."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from huggingface_hub import HfApi
from peft import PeftModel
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from gpt2tg.errors import Interrupted, RunError, one_line
from gpt2tg.io.json_files import read_object
from gpt2tg.training.callbacks import Stopwatch, best_step, held_step, is_due, measuring_bar
from gpt2tg.training.data.batches import count_tokens
from gpt2tg.training.data.blocks import NO_LOSS
from gpt2tg.training.devices import memory_gb, undisturbed_randomness
from gpt2tg.training.evaluate import perplexity
from gpt2tg.training.interruption import Agreement, Interruption
from gpt2tg.training.output.directory import RUN_FILE, STATE_FILE, RunDirectory, clear, make_readable
from gpt2tg.training.output.durable import UNFINISHED
from gpt2tg.training.output.restoring import require_fitting_adapter, require_fitting_state, set_rates, told_as_damage
from gpt2tg.training.output.saved_state import OUR_STATE


class LossSum:
    """The losses since the last line of the log, and the first step whose loss was no number.

    It is kept on the device, so that no step waits for it, and in each checkpoint, so that the lines of a resumed
    run are those of the uninterrupted one.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._total = torch.zeros((), device=accelerator.device)
        self._broken = torch.full((), -1, device=accelerator.device)
        self._since = 0

    def add(self, loss: Tensor, step: int) -> None:
        """Count the loss of a forward pass, which is its share in the loss of the step."""
        self._total += loss
        self._broken = torch.where((self._broken < 0) & ~torch.isfinite(loss), step, self._broken)

    def take(self, step: int) -> float:
        """The mean since the last call, over all processes."""
        mean = self._accelerator.gather(self._total).mean().item() / max(step - self._since, 1)
        self._total.zero_()
        self._since = step
        return mean

    def require_finite(self) -> None:
        """Raises NotFinite where a loss was no number, in any of the processes."""
        if (step := int(self._accelerator.gather(self._broken).max().item())) >= 0:
            raise not_finite("loss", step)

    @property
    def logged_step(self) -> int:
        """The step of the last line of the log."""
        return self._since

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it: the sum of each process."""
        return {"loss_sums": self._accelerator.gather(self._total).reshape(-1).tolist(), "logged_step": self._since}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint kept."""
        self._total.fill_(state["loss_sums"][self._accelerator.process_index % len(state["loss_sums"])])
        self._since = int(state["logged_step"])


class TokenCount:
    """The tokens trained on so far, without padding; kept on the device, so that no step waits for it."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._here = torch.zeros((), dtype=torch.int64, device=accelerator.device)

    def add(self, tokens: Tensor) -> None:
        """Count those of a batch."""
        self._here += tokens.to(self._here.device)

    def total(self) -> int:
        """Of all processes, which have to ask for it together."""
        return int(self._accelerator.gather(self._here).sum().item())

    def restore(self, total: int) -> None:
        """Go on from so many."""
        self._here.fill_(total if self._accelerator.is_main_process else 0)


class LanguageTrainer(Trainer):
    """Trains on blocks, measures exactly, and saves what can be gone on from."""

    def __init__(
        self,
        *,
        directory: RunDirectory,
        identity: dict[str, Any],
        keep: str,
        eval_steps: int | None,
        stopwatch: Stopwatch,
        interruption: Interruption,
        pad_id: int,
        **settings: Any,
    ) -> None:
        """Make ready to train.

        Args:
            identity: what a resumed run must have in common with this one; each checkpoint keeps it.
            pad_id: the token that fills short blocks.
        """
        super().__init__(**settings)
        if self.accelerator.ddp_handler is not None:  # else each process holds its gradients twice
            self.accelerator.ddp_handler.gradient_as_bucket_view = True
        self.directory = directory
        self._identity = identity
        self._pad_id = pad_id
        self._keep = keep
        self._eval_steps = eval_steps
        self.stopwatch = stopwatch
        self._interruption = interruption
        self.agreement = Agreement(self.accelerator, interruption)
        self._losses = LossSum(self.accelerator)
        self._tokens = TokenCount(self.accelerator)
        self._is_saving = False
        self._first_step = 0
        self._resumed_from: str | None = None
        self._last_step: dict[str, float] = {}  # gradient norm and learning rate of the last step
        self.has_saved = False

    def train(self, resume_from_checkpoint: str | None = None, **settings: Any) -> Any:
        """Train, or go on from a checkpoint that is known to be whole."""
        seconds = 0.0
        measures = self.eval_dataset is not None
        self.args.eval_on_start = measures
        self._resumed_from = resume_from_checkpoint
        if resume_from_checkpoint is not None:
            state = read_state(Path(resume_from_checkpoint))
            ours = state["stateful_callbacks"][OUR_STATE]
            self._losses.restore(ours)
            self._last_step = ours.get("last_step", {})
            seconds, self._first_step = ours["seconds"], state["global_step"]
            # Checkpoints of earlier versions counted full blocks.
            self._tokens.restore(ours.get("tokens", self._first_step * self.stopwatch.tokens_per_step))
            # The run may have been interrupted when it was about to measure.
            self.args.eval_on_start = measures and _lacks_measurement(state, self._eval_steps)
        self.stopwatch.start(seconds, self._first_step, self._tokens.total())
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **settings)

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *rest: Any, **settings: Any) -> Tensor:
        """As in transformers; loss and tokens are counted here, because a resumed run needs the counts."""
        self._tokens.add(count_tokens(inputs, self._pad_id))
        loss = super().training_step(model, inputs, *rest, **settings)
        self._losses.add(loss, self.state.global_step + 1)
        return loss

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """As in transformers, called once a step: what the log says of the step is kept with the checkpoint."""
        found = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._last_step = {"grad_norm": found, "learning_rate": self._get_learning_rate()}
        return found

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """As in transformers, which passes over tensors that are missing or of other names.

        Raises:
            Damaged: the weights are not those of this model.
        """
        with told_as_damage(resume_from_checkpoint, "its weights"):
            if isinstance(self.model, PeftModel):
                require_fitting_adapter(Path(resume_from_checkpoint), self.model)
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the moments of the optimizer and how far the schedule has come.

        The settings in both files give way to those of this run, which are others after --resume_anyway and where the
        length of the run has changed. Transformers would go on with those of the checkpoint.

        Raises:
            Damaged: the state is not that of this model's optimizer.
        """
        if checkpoint is None or self.optimizer is None or self.lr_scheduler is None:
            return
        groups = self.optimizer.param_groups
        settings = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        with told_as_damage(checkpoint, "the state of its optimizer"):
            super()._load_optimizer_and_scheduler(checkpoint)
            if not self.is_fsdp_enabled:
                require_fitting_state(self.optimizer)
        for group, given in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(given)
        if isinstance(self.lr_scheduler, LambdaLR):
            set_rates(self.lr_scheduler, self.optimizer)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with told_as_damage(str(checkpoint), "the state of its loss scaler"):
            super()._load_scaler(checkpoint)

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        """As in transformers, which skips the scheduler before the first step alone. A run that was interrupted in a
        measurement makes it then, and after it does what it would have done."""
        metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        if skip_scheduler and self._resumed_from is not None:
            self._end_step(trial)
        return metrics

    def _end_step(self, trial: Any) -> None:
        """Save, and log where the run ends, as after a measurement in the middle of the run."""
        if self.control.should_save:
            self._load_rng_state(self._resumed_from)  # transformers loads it when the next step begins
            self._save_checkpoint(self.model_wrapped, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        if self.control.should_training_stop and self._losses.logged_step < self.state.global_step:
            self.log({"loss": 0.0, **self._last_step})  # the loss itself comes from our count

    def _run_epoch(self, **settings: Any) -> None:
        """As in transformers, which would take one more step where the measurement before it ended the run."""
        if not self.control.should_training_stop:
            super()._run_epoch(**settings)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As in transformers, which counts the model's weights anew at each step."""
        return self._operations_per_token * inputs["input_ids"].numel()

    @functools.cached_property
    def _operations_per_token(self) -> int:
        return super().floating_point_ops({"input_ids": torch.empty(1)})

    def log(self, logs: dict[str, float], *rest: Any, **settings: Any) -> None:
        """As in transformers, with our loss, and what it took to get there."""
        if "loss" in logs:
            self._losses.require_finite()
            step = self.state.global_step
            logs["loss"] = self._losses.take(step)
            logs["tokens"] = self._tokens.total()
            logs["tokens_per_second"] = self.stopwatch.tokens_per_second(logs["tokens"])
            logs["seconds"] = self.stopwatch.seconds
            logs["memory_gb"] = memory_gb(self.args.device)
        super().log(logs, *rest, **settings)

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Loss and perplexity of the validation blocks, a mean over tokens; only two numbers per batch are kept.

        Leaves the random state as it was. A signal ends it without a result, for the resumed run to make it; that of
        the last step is made in any case, as nothing is left to resume.
        """
        with self.stopwatch.paused(), undisturbed_randomness():
            self.model.eval()
            total = torch.zeros(2, dtype=torch.float64)  # loss in nats, tokens
            for batch in measuring_bar(self.get_eval_dataloader()):
                if self.state.global_step < self.state.max_steps and self.is_interrupted():
                    total.zero_()
                    break
                total += self._loss_and_tokens(batch)
            self.model.train()
        if not total[1]:
            self._end_unmeasured()
            return {}
        loss = (total[0] / total[1]).item()
        if not math.isfinite(loss):
            raise not_finite("validation loss", self.state.global_step)
        metrics = {f"{metric_key_prefix}_loss": loss, f"{metric_key_prefix}_perplexity": perplexity(loss)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _end_unmeasured(self) -> None:
        """Save before the measurement, which the resumed run will make; nothing is saved where no step was taken."""
        if self.state.global_step > self._first_step:
            self.control.should_save = self.control.should_training_stop = True
            self.control.should_evaluate = False  # else it is tried, and saved, once more at the end of the epoch
            return
        way_out = "" if self._first_step else ": start again with --overwrite"
        number = self._interruption.signal or signal.SIGTERM
        raise Interrupted(f"interrupted before the first step{way_out}", number, is_saved=self._first_step > 0)

    @torch.no_grad()
    def _loss_and_tokens(self, batch: dict[str, Tensor]) -> Tensor:
        batch["labels"][self._repeated(len(batch["labels"]))] = NO_LOSS
        tokens = (batch["labels"][:, 1:] != NO_LOSS).sum()
        with self.compute_loss_context_manager():
            loss = self.model(**self._prepare_inputs(batch)).loss  # not compute_loss, which smooths labels if asked to
        total = torch.where(tokens > 0, loss.detach() * tokens, 0)
        both = torch.stack([total, tokens]).to(torch.float32)
        return self.accelerator.reduce(both).cpu().double()

    def _repeated(self, rows: int) -> Tensor:
        """(B,) the rows of a last batch that accelerate repeats from the first, so that all processes have as many."""
        real = self.accelerator.gradient_state.remainder
        if self.args.world_size == 1 or not self.accelerator.gradient_state.end_of_dataloader or real <= 0:
            return torch.zeros(rows, dtype=torch.bool)
        return torch.arange(rows) + self.args.process_index * rows >= real

    def is_interrupted(self) -> bool:
        """Whether a signal has come, to any of the processes."""
        return self.agreement.is_interrupted()

    def require_finite(self) -> None:
        """Raises RunError where a loss or a weight is no number."""
        self._losses.require_finite()
        if not all(torch.isfinite(weight).all() for weight in self.model.parameters()):
            raise not_finite("largest weight", self.state.global_step)

    def _get_output_dir(self, trial: Any) -> str:
        """While saving, the place for what is not whole yet."""
        directory = super()._get_output_dir(trial)
        return os.path.join(directory, UNFINISHED) if self._is_saving else directory

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write a checkpoint aside, give it its name when it is whole, and only then remove older ones."""
        self.require_finite()
        with self.stopwatch.paused():
            self.state.stateful_callbacks[OUR_STATE] = {
                **self._losses.state(),
                "tokens": self._tokens.total(),
                "seconds": self.stopwatch.seconds,
                "last_step": {name: float(value) for name, value in self._last_step.items()},
            }
            try:
                with self._as_saved():
                    super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.is_world_process_zero():
                    self._settle(self.directory.path / UNFINISHED / f"checkpoint-{self.state.global_step}")
            except BaseException:
                with contextlib.suppress(OSError):
                    clear(self.directory.path, everything=False)
                raise
            self.accelerator.wait_for_everyone()
        self.has_saved = True

    @contextlib.contextmanager
    def _as_saved(self) -> Iterator[None]:
        """The Trainer turns the cache off for training alone: a saved model has it on."""
        self._is_saving = True
        before, self.model.config.use_cache = self.model.config.use_cache, True
        try:
            yield
        finally:
            self.model.config.use_cache = before
            self._is_saving = False

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As in transformers; an adapter gets the config that our reader wants, and no card of its own.

        Transformers stores its arguments too: a token of the hub has no place in a file that may be passed on.
        """
        if state_dict is not None and self.model.config.tie_word_embeddings:
            state_dict.pop("lm_head.weight", None)  # the embeddings once more, where FSDP has gathered the weights
        token, self.args.hub_token = self.args.hub_token, None
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token
        if isinstance(self.model, PeftModel) and output_dir is not None:
            (Path(output_dir) / "README.md").unlink(missing_ok=True)
            self.model.config.save_pretrained(output_dir)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As in transformers: makes the repository, before any training, so that a missing login is seen at once."""
        try:
            super().init_hf_repo(token, private)
        except Exception as error:  # of the hub's library, or of whatever it goes to the network with
            name = self.args.hub_model_id or Path(self.args.output_dir).name
            raise RunError(
                f"--push_to_hub cannot make {name} on the hub: {one_line(error)}; leave the flag out to train without "
                f"it, hf upload {name} DIRECTORY takes the model there later"
            ) from None

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing yet: what is uploaded is what the directory itself holds, and this checkpoint is not in its place."""

    def _push_on_the_way(self) -> None:
        if not self.args.push_to_hub or self.args.hub_strategy == HubStrategy.END:
            return
        if self.push_in_progress is None or self.push_in_progress.is_done():
            message = f"Training in progress, step {self.state.global_step}"
            self.push_in_progress = PushInProgress([self._upload(message, blocking=False)])

    def push_to_hub(self, commit_message: str | None = "End of training", blocking: bool = True, **_: Any) -> Any:
        """Upload the model that the directory itself holds, with its card, log and picture. run.json names files of
        this machine and stays here.

        Raises:
            RunError: the hub cannot be reached, or refuses.
        """
        self._finish_current_push()
        try:
            return self._upload(commit_message, blocking)
        except Exception as error:  # as above
            raise RunError(
                f"{self.directory.path} was not uploaded: {one_line(error)}; the model is whole there, "
                "hf upload takes it to the hub"
            ) from None

    def _upload(self, message: str | None, blocking: bool) -> Any:
        return HfApi().upload_folder(
            repo_id=self.hub_model_id,
            folder_path=self.directory.path,
            commit_message=message,
            token=self.args.hub_token,
            revision=self.args.hub_revision,
            ignore_patterns=["_*", ".*", "checkpoint-*", RUN_FILE],
            delete_patterns=self.directory.absent_weights(),
            run_as_future=not blocking,
        )

    def _settle(self, draft: Path) -> None:
        make_readable(draft)
        self.directory.add_checkpoint(draft, self.state.global_step, {"run": self._identity})
        self.directory.tidy(held_step(self.state, self._keep), best_step(self.state.log_history))
        self._push_on_the_way()


def _lacks_measurement(state: dict[str, Any], eval_steps: int | None) -> bool:
    step = state["global_step"]
    measured = any("eval_loss" in entry and entry["step"] == step for entry in state["log_history"])
    return not measured and is_due(step, state["epoch"], state["max_steps"], eval_steps)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The state of the Trainer in a checkpoint."""
    return read_object(checkpoint / STATE_FILE)


class NotFinite(RunError):
    """The end of a run that has lost its way."""


def not_finite(what: str, step: int) -> NotFinite:
    """Says what was no number, and what may help."""
    return NotFinite(
        f"the {what} is no finite number at step {step}, and no checkpoint holds it: "
        "lower --learning_rate, or use --bf16 instead of --fp16"
    )
