"""The types that decoders share with models, filters and callers, and the helpers that all decoders use."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from gpt2tg.decoding.history import History

# Why a text ends: an end token, a stop string, `max_new_tokens` reached, the time limit, every next token banned.
FinishReason = Literal["eos", "stop", "length", "time", "banned"]


class Rows(Protocol):
    """A batch of sequences in a model: one row each, with its KV cache."""

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Prefill: read one prompt per row. Returns (B, V) logits of the next token."""

    def step(self, tokens: Tensor) -> Tensor:
        """Decode step: append (B,) tokens, one to each row. Returns (B, V) logits of the next token."""

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order. A row may be named more than once."""


@dataclass
class Text:
    """The token ids of one row: the prompt, then the new tokens."""

    ids: History
    prompt_length: int

    @classmethod
    def after(cls, prompt: Sequence[int]) -> Text:
        """Return a text that holds a copy of the prompt and no new token."""
        return cls(History(prompt), len(prompt))

    @property
    def new(self) -> Sequence[int]:
        """The new tokens."""
        return self.ids[self.prompt_length :]

    @property
    def new_count(self) -> int:
        """The number of new tokens."""
        return len(self.ids) - self.prompt_length

    def append(self, token: int) -> None:
        """Add a new token."""
        self.ids.append(token)

    def continued(self, token: int) -> Text:
        """Return a copy of this text with one more token."""
        return Text(self.ids.continued(token), self.prompt_length)


# (B, V) logits and the text of each row -> (B, V) logits. A filter never changes its input.
Filter = Callable[[Tensor, Sequence[Text]], Tensor]

# The index of a sample (in beam search: of a prompt) and its new ids, the newest last -> why the text ends with the
# newest one, or None.
Finish = Callable[[int, Sequence[int]], FinishReason | None]


@dataclass(frozen=True)
class Token:
    """One new token of one sample."""

    sample: int
    id: int | None
    """None if every token is banned: the text ends without a further token."""
    logprob: float
    """Log-probability under the model, before any filter, in nats."""
    finish_reason: FinishReason | None
    """Why the sample ends with this token; None if it goes on."""

    @classmethod
    def all_banned(cls, sample: int) -> Token:
        """Return the end of a sample all of whose next tokens are banned."""
        return cls(sample, None, 0.0, "banned")


class NotFiniteError(ValueError):
    """The model computed NaN or infinite logits."""


def log_probabilities(logits: Tensor, step: int) -> Tensor:
    """Return the model's log-probabilities in nats. (B, V) -> (B, V)

    Minus infinity is allowed: it bans a token. NaN and plus infinity are not: any token chosen from them is arbitrary.

    Raises:
        NotFiniteError: names the step.
    """
    logprobs = logits.log_softmax(dim=1)
    # A NaN or plus infinity makes its whole row NaN, so one column shows it.
    if math.isnan(logprobs[:, 0].sum()):
        raise not_finite_error(step)
    return logprobs


def broken_rows(logprobs: Tensor) -> list[int]:
    """Return the rows of (B, V) log-probabilities whose logits are NaN or plus infinity."""
    found: list[int] = logprobs[:, 0].isnan().nonzero()[:, 0].tolist()
    return found


def not_finite_error(step: int) -> NotFiniteError:
    """Return the error for logits that are not finite at a step."""
    return NotFiniteError(f"the model's logits are not finite at new token {step}: its weights are broken")


def is_allowed(filtered: Tensor, tokens: Tensor) -> list[bool]:
    """Return for each row whether the chosen token is allowed. If it is banned, so is the whole vocabulary.

    Args:
        filtered: (B, V) logits after the filters.
        tokens: (B,) the chosen tokens. A banned token is chosen only if all are banned.
    """
    allowed: list[bool] = (filtered.gather(1, tokens[:, None])[:, 0] > -torch.inf).tolist()
    return allowed


def apply_filters(filters: Sequence[Filter], logits: Tensor, texts: Sequence[Text]) -> Tensor:
    """Apply filters in their order. (B, V) -> (B, V)"""
    for change in filters:
        logits = change(logits, texts)
    return logits
