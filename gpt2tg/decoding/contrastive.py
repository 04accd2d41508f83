"""Contrastive search (Su et al. 2022, "A Contrastive Framework for Neural Text Generation").

Of the k most probable tokens it takes the one with the best trade-off between its probability and the similarity of its
hidden state to those of earlier tokens: a similar state means that the token repeats the text.

Letters in shapes: k candidates per row, T tokens read at once, N tokens of a text so far, E width of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2tg.decoding.interface import Filter, Finish, Rows, Token, apply_filters, log_probabilities
from gpt2tg.decoding.live_texts import LiveTexts


class HiddenRows(Rows, Protocol):
    """Rows that also return the hidden states from which their logits were computed."""

    def hidden(self) -> list[Tensor]:
        """Return, for each row, the states of the tokens that the last `start` or `step` read. (T, E) each"""


def contrastive_search(
    rows: HiddenRows,
    prompts: Sequence[Sequence[int]],
    filters: Sequence[Filter],
    top_k: int,
    penalty_alpha: float,
    finish: Finish,
) -> Iterator[Token]:
    """Generate one text per prompt, as a batch. A text that ends leaves the batch.

    Args:
        rows: the model.
        prompts: the ids to continue.
        filters: applied to the logits before the candidates are taken, in this order.
        top_k: the number of candidates for each token.
        penalty_alpha: weight of the similarity against the probability; 0 is greedy.
        finish: called for each text after each of its tokens.

    Raises:
        NotFiniteError: the model's logits are not finite.
    """
    live = LiveTexts(prompts, finish)
    logits = rows.start(prompts)
    past = [F.normalize(states, dim=1) for states in rows.hidden()]  # of each live row (N, E)
    for step in count(1):
        logprobs = log_probabilities(logits, step)
        filtered = apply_filters(filters, logits, live.texts).softmax(dim=1)
        probabilities, candidates = filtered.topk(min(top_k, logits.shape[1]), dim=1)  # (B, k)
        ahead, states = _read_candidates(rows, candidates)
        chosen = _best_candidates(probabilities, states, past, penalty_alpha)
        # The softmax of a row in which all tokens are banned is NaN.
        allowed = (~probabilities.isnan().any(dim=1)).tolist()
        tokens = candidates.gather(1, chosen[:, None])[:, 0]
        staying = yield from live.append(tokens, logprobs, allowed)
        if not staying:
            return
        past = [torch.cat([past[row], states[row, chosen[row]][None]]) for row in staying]
        kept = [row * candidates.shape[1] + int(chosen[row]) for row in staying]
        rows.select(kept)
        logits = ahead[kept]


def _read_candidates(rows: HiddenRows, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Continue each row with each of its (B, k) candidates. Returns (B * k, V) logits and (B, k, E) unit states."""
    rows.select([row for row in range(len(candidates)) for _ in range(candidates.shape[1])])
    ahead = rows.step(candidates.flatten())
    return ahead, F.normalize(torch.cat(rows.hidden()), dim=1).view(*candidates.shape, -1)


def _best_candidates(probabilities: Tensor, states: Tensor, past: Sequence[Tensor], penalty_alpha: float) -> Tensor:
    """Return for each row the index of its best candidate by equation 5 of Su et al. 2022. (B,)

    Args:
        probabilities: (B, k) of the candidates.
        states: (B, k, E) of the candidates.
        past: for each row (N, E), of the tokens so far.
    """
    similarity = torch.stack([(own @ before.T).amax(dim=1) for own, before in zip(states, past, strict=True)])  # (B, k)
    score = (1 - penalty_alpha) * probabilities - penalty_alpha * similarity
    return score.masked_fill(probabilities == 0, -torch.inf).argmax(dim=1)
