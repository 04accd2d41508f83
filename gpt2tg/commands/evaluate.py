"""Evaluate: measure how well a model predicts a text."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2tg.commands.flags import Flags
from gpt2tg.commands.loading import ModelChoice, resolve
from gpt2tg.options import EvaluationOptions, ModelNameOptions


@dataclass(frozen=True)
class EvaluateCommand:
    """Which model to measure on which text."""

    model: ModelChoice
    evaluation: EvaluationOptions

    @classmethod
    def from_flags(cls, flags: Flags) -> EvaluateCommand:
        """Build the command.

        Raises:
            UserError: a value out of range.
        """
        name = flags.pick(ModelNameOptions).model_name
        return cls(ModelChoice.from_flags(flags, name, "model_name"), flags.pick(EvaluationOptions))


def evaluate(command: EvaluateCommand) -> None:
    """Print loss, perplexity and bits per byte of a text.

    Raises:
        UserError: a flag, a file or the model cannot be used.
    """
    from gpt2tg.training.checks import check_evaluation

    checkpoint = resolve(command.model)
    text = check_evaluation(command.evaluation, checkpoint, command.model.device)

    from gpt2tg.generation.generator import choose_device
    from gpt2tg.training import evaluate as evaluation

    found = evaluation.evaluate(checkpoint, command.evaluation, choose_device(command.model.device), text)
    print(f"tokens {found.tokens}")
    print(f"loss {found.loss:.4f}")
    print(f"perplexity {found.perplexity:.2f}")
    print(f"bits per byte {found.bits_per_byte:.4f}")
