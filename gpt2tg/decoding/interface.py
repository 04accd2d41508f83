"""What a decoder asks of a model, and what a decoder and its caller say to each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gpt2tg.decoding.history import History

# Why a text ends where the filters leave no token that it could go on with.
ALL_BANNED = "banned"


class Rows(Protocol):
    """Texts side by side in a model, a row each."""

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read prompts, a row each. Returns (B, V) logits of the next token."""

    def step(self, tokens: Tensor) -> Tensor:
        """Append (B,) tokens, one to each row. Returns (B, V) logits of the next token."""

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may be named more than once."""


@dataclass(frozen=True)
class Text:
    """The ids of a row so far, and how many of them are the prompt."""

    ids: Sequence[int]
    prompt_length: int

    @classmethod
    def after(cls, prompt: Sequence[int]) -> Text:
        """A text that begins with a prompt, and can grow."""
        return cls(History(prompt), len(prompt))

    @property
    def new(self) -> Sequence[int]:
        """The ids written so far."""
        return self.ids[self.prompt_length :]

    @property
    def new_count(self) -> int:
        """How many there are of them."""
        return len(self.ids) - self.prompt_length

    def append(self, token: int) -> None:
        """Add the next token."""
        assert isinstance(self.ids, History)
        self.ids.append(token)

    def continued(self, token: int) -> Text:
        """Return this text with one more token; the text itself stays as it is."""
        return Text(History.of(self.ids).continued(token), self.prompt_length)


# (B, V) logits and the text of each row -> (B, V) logits.
Filter = Callable[[Tensor, Sequence[Text]], Tensor]

# The index of a sample (of a prompt, in beam search) and its new ids, the newest last -> why the text ends with
# that one ("eos", "length", "stop", "time"), or None.
Finish = Callable[[int, Sequence[int]], str | None]


@dataclass(frozen=True)
class Token:
    """One token of one sample."""

    sample: int
    id: int | None
    """None where no token was left to choose: the text ends before it."""
    logprob: float
    """Log-probability under the model itself, before any filter, in nats."""
    finish_reason: str | None
    """Why the sample ends here; None while it goes on."""

    @classmethod
    def none_left(cls, sample: int) -> Token:
        """The end of a sample all of whose next tokens are banned."""
        return cls(sample, None, 0.0, ALL_BANNED)


class NotFiniteError(ValueError):
    """The model computed something that is no number."""


def log_probabilities(logits: Tensor, step: int) -> Tensor:
    """Of each token under the model itself, in nats. (B, V) -> (B, V)

    NaN and plus infinity are refused: a token chosen from them would be invented. Minus infinity is a ban.

    Raises:
        NotFiniteError: names the step.
    """
    logprobs = logits.log_softmax(dim=1)
    # Either of them makes NaN of all that is in its row.
    if math.isnan(logprobs[:, 0].sum()):
        raise not_finite(step)
    return logprobs


def not_finite(step: int) -> NotFiniteError:
    """The error, with what the user is told."""
    return NotFiniteError(f"the model's logits are not finite at new token {step}: its weights are broken")


def is_left(filtered: Tensor, tokens: Tensor) -> list[bool]:
    """Whether each row has a token that is not banned, told from the one that was chosen.

    Args:
        filtered: (B, V) logits after the filters.
        tokens: (B,) the choice, which is a banned token only where all are.
    """
    return (filtered.gather(1, tokens[:, None])[:, 0] > -torch.inf).tolist()


def apply(filters: Sequence[Filter], logits: Tensor, texts: Sequence[Text]) -> Tensor:
    """Filters in their order. (B, V) -> (B, V)"""
    for change in filters:
        logits = change(logits, texts)
    return logits
