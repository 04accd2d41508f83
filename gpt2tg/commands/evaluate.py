"""Evaluate: measure how well a model predicts a text."""

from __future__ import annotations

from gpt2tg.commands.loading import ModelChoice, resolve
from gpt2tg.io.processes import require_single_process
from gpt2tg.options import EvaluationOptions


def evaluate(model: ModelChoice, options: EvaluationOptions) -> None:
    """Print loss, perplexity and bits per byte of a text.

    Raises:
        UserError: a flag, a file or the model cannot be used.
    """
    require_single_process("evaluate is for", "task")

    from gpt2tg.training.checks import check_evaluation

    checkpoint = resolve(model)
    text = check_evaluation(options, checkpoint, model.device)

    from gpt2tg.generation.generator import choose_device
    from gpt2tg.training import evaluate as evaluation

    found = evaluation.evaluate(checkpoint, options, choose_device(model.device), text)
    print(f"tokens {found.tokens}")
    print(f"loss {found.loss:.4f}")
    print(f"perplexity {found.perplexity:.2f}")
    print(f"bits per byte {found.bits_per_byte:.4f}")
