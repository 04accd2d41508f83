"""The outcome of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import TrainerState

from gpt2tg.checkpoint.runs import step_of_model


@dataclass(frozen=True)
class Outcome:
    """What a run achieved. Losses are means per token in nats; None without an evaluation.

    Attributes:
        steps: the last step of the run.
        held_step: the step whose model the output directory itself holds.
        seconds: spent training, over all resumes.
        loss_before: the validation loss before training.
        loss_after: the validation loss of the model that the directory holds.
    """

    output_dir: Path
    steps: int
    held_step: int
    seconds: float
    loss_before: float | None
    loss_after: float | None


def outcome_of(output_dir: Path, state: TrainerState) -> Outcome:
    """Return the outcome of a run that ended in this state."""
    losses = {entry["step"]: entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry}
    seconds = [entry["seconds"] for entry in state.log_history if "seconds" in entry]
    held = step_of_model(output_dir) or state.global_step
    return Outcome(
        output_dir=output_dir,
        steps=state.global_step,
        held_step=held,
        seconds=max(seconds, default=0.0),
        loss_before=losses.get(0),
        loss_after=losses.get(held),
    )
