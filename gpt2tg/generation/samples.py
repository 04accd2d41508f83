"""What generation returns: finished texts (`Sample`), and pieces of text while they are being generated (`Chunk`)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from gpt2tg.decoding.interface import FinishReason
from gpt2tg.options import DecodingOptions

# The finish reasons of a text that neither the model nor a stop string ended.
CUT_SHORT: tuple[FinishReason, ...] = ("length", "time", "banned")


@dataclass(frozen=True)
class Sample:
    """One finished text."""

    prompt: str
    completion: str
    prompt_index: int
    index: int
    """The number of the text among those of its prompt: the number of the draw, or the rank among beams."""
    prompt_tokens: int
    """The number of prompt tokens that the model read. Less than the whole prompt if `overflow` truncated it."""
    ids: tuple[int, ...]
    """The new tokens, including the one that ended the text."""
    finish_reason: FinishReason
    """`eos`: the model ended the text. `stop`: a stop string. `length`: the maximum length. `time`: the time limit.
    `banned`: every next token was banned."""
    logprob: float
    """Sum of the log-probabilities of the new tokens under the model, before any filter, in nats."""
    seed: int | None = None
    """The seed of a drawn text; None if nothing was drawn."""
    ranking_score: float | None = None
    """The score by which beam search ranks: filtered log-probability after the length penalty; None without beams."""
    is_unfinished: bool = False
    """With `end_at_sentence`: the text was cut short before any sentence was complete, and was left as it is."""

    @property
    def text(self) -> str:
        """The prompt and its completion."""
        return self.prompt + self.completion

    @property
    def replay(self) -> str | None:
        """The value of `--replay` that generates this text again; None for a text that was not drawn."""
        return None if self.seed is None else f"{self.seed}/{self.prompt_index}/{self.index}"


@dataclass(frozen=True)
class Chunk:
    """A piece of a text that is being generated. The last chunk of each text carries the finished sample."""

    prompt_index: int
    index: int
    text: str
    sample: Sample | None = None


def chosen_samples(samples: Iterable[Sample], options: DecodingOptions) -> list[Sample]:
    """Return the samples of a prompt that the user gets, in their order: with `best_of`, the best different ones."""
    if options.draws == options.sequences or options.strategy.beams:
        return sorted(samples, key=lambda sample: sample.index)
    unique = {sample.ids: sample for sample in sorted(samples, key=lambda sample: -sample.index)}
    best_first = sorted(unique.values(), key=lambda sample: (-_mean_logprob(sample), sample.index))
    return best_first[: options.sequences]


def _mean_logprob(sample: Sample) -> float:
    """Return the log-probability per token. An empty text is the worst."""
    return sample.logprob / len(sample.ids) if sample.ids else -math.inf
