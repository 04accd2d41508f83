"""The decoding strategies, and which of the optional controls each of them uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

StrategyName = Literal["greedy", "beam", "diverse_beam", "sample", "top_k", "top_p", "beam_sample", "contrastive"]


@dataclass(frozen=True)
class Strategy:
    """A decoding strategy: what it does, and the names of the optional controls that it uses."""

    summary: str
    uses: tuple[str, ...]
    samples: bool = False
    beams: bool = False


# Controls of the distribution that tokens are sampled from. Each of top_k and top_p also has a strategy of its own.
_SAMPLING = ("temperature", "min_p", "typical_p", "seed", "replay")
_TRUNCATED_SAMPLING = (*_SAMPLING, "top_k", "top_p")
_WITHOUT_BEAMS = ("best_of", "prompt_lookup")
_BEAMS = ("num_beams", "early_stopping", "length_penalty")

STRATEGIES: dict[StrategyName, Strategy] = {
    "greedy": Strategy("the most probable token at every step", ("prompt_lookup",)),
    "beam": Strategy("beam search: keeps the most probable sequences at every step", _BEAMS, beams=True),
    "diverse_beam": Strategy(
        "beam search in groups, each penalised for tokens that an earlier group has chosen",
        (*_BEAMS, "num_beam_groups", "diversity_penalty"),
        beams=True,
    ),
    "sample": Strategy("samples from the full distribution", (*_SAMPLING, *_WITHOUT_BEAMS), samples=True),
    "top_k": Strategy("samples from the k most probable tokens", (*_TRUNCATED_SAMPLING, *_WITHOUT_BEAMS), samples=True),
    "top_p": Strategy(
        "nucleus sampling: samples from the smallest set of tokens with total probability p",
        (*_TRUNCATED_SAMPLING, *_WITHOUT_BEAMS),
        samples=True,
    ),
    "beam_sample": Strategy(
        "beam search that samples its next tokens", (*_BEAMS, *_TRUNCATED_SAMPLING), samples=True, beams=True
    ),
    "contrastive": Strategy(
        "the probable token that least resembles what the text already holds", ("top_k", "penalty_alpha")
    ),
}

# The filters that a strategy applies by default.
DEFAULT_TOP_K: dict[StrategyName, int] = {"top_k": 50, "contrastive": 4}
DEFAULT_TOP_P: dict[StrategyName, float] = {"top_p": 0.9}
