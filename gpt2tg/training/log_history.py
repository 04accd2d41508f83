"""Questions about the log history of a run: when to evaluate, which step is best, when to stop early."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import TrainerState

# The entries of `TrainerState.log_history`: one per logged step and one per evaluation.
History = Sequence[dict[str, float]]


def is_evaluation_due(step: int, epoch: float, last_step: int, eval_steps: int | None) -> bool:
    """Whether to evaluate after this step: before training, after each epoch, every `eval_steps`, and at the end."""
    return float(epoch).is_integer() or step >= last_step or (eval_steps is not None and step % eval_steps == 0)


def evaluations(history: History) -> list[tuple[float, int]]:
    """Return (validation loss, step) of each evaluation after the first training step."""
    return [(entry["eval_loss"], int(entry["step"])) for entry in history if "eval_loss" in entry and entry["step"]]


def best_step(history: History) -> int | None:
    """Return the step of the lowest validation loss, the earliest if several tie; None without an evaluation."""
    return min(evaluations(history), default=(0.0, None))[1]


def held_step(state: TrainerState, keep: str) -> int:
    """Return the step whose model belongs in the output directory itself: the best one if `keep` is "best"."""
    best = best_step(state.log_history) if keep == "best" else None
    return state.global_step if best is None else best


def is_out_of_patience(history: History, patience: int | None) -> bool:
    """Whether at least `patience` evaluations followed the best one; never if `patience` is None."""
    if patience is None:
        return False
    steps = [step for _, step in evaluations(history)]
    best = best_step(history)
    return best is not None and len(steps) - 1 - steps.index(best) >= patience
