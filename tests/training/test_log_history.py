"""When to evaluate, which step is best, and when to stop early."""

from __future__ import annotations

from gpt2tg.training.log_history import best_step, evaluations, is_evaluation_due, is_out_of_patience

HISTORY = [
    {"step": 0, "eval_loss": 1.0},
    {"step": 5, "loss": 4.0},
    {"step": 10, "eval_loss": 3.0},
    {"step": 20, "eval_loss": 2.5},
    {"step": 30, "eval_loss": 2.5},
    {"step": 40, "eval_loss": 2.75},
]


def test_best_step_and_patience() -> None:
    """The model before training does not count, and the earlier of two equal losses is the best."""
    assert best_step(HISTORY) == 20
    assert best_step(HISTORY[:2]) is None
    assert len(evaluations(HISTORY)) == 4
    assert [is_out_of_patience(HISTORY, patience) for patience in (None, 1, 2, 3)] == [False, True, True, False]
    assert not is_out_of_patience(HISTORY[:2], 1)


def test_evaluation_schedule() -> None:
    due = [step for step in range(13) if is_evaluation_due(step, step / 5, 12, eval_steps=None)]
    assert due == [0, 5, 10, 12]
    assert [step for step in range(13) if is_evaluation_due(step, step / 5, 12, eval_steps=4)] == [0, 4, 5, 8, 10, 12]
