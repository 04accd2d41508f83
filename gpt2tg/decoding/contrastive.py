"""Contrastive search (Su et al. 2022, "A Contrastive Framework for Neural Text Generation").

Among the k most probable tokens, take the one that is probable and yet says something new: a token whose hidden
state resembles that of an earlier token repeats what the text already holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2tg.decoding.interface import Filter, Finish, Rows, Text, Token, apply, log_probabilities


class HiddenRows(Rows, Protocol):
    """Rows that also tell the hidden states from which their logits were made."""

    def hidden(self) -> list[Tensor]:
        """For each row, the states of the tokens that the last `start` or `step` read. Each (T, E)."""


def contrastive_search(
    rows: HiddenRows,
    prompts: Sequence[Sequence[int]],
    filters: Sequence[Filter],
    top_k: int,
    penalty_alpha: float,
    finish: Finish,
) -> Iterator[Token]:
    """Write one text for each prompt, side by side; each ends when `finish` says so and leaves the batch.

    Args:
        rows: the model.
        prompts: ids to continue.
        filters: applied to the logits before the candidates are taken, in this order.
        top_k: candidates looked at for each token.
        penalty_alpha: weight of the resemblance against the probability; 0 is greedy.
        finish: looks at every text after each of its tokens.

    Raises:
        NotFiniteError: the model's logits are no numbers.
    """
    texts = [Text.after(prompt) for prompt in prompts]
    live = list(range(len(prompts)))
    logits = rows.start(prompts)
    past = [F.normalize(states, dim=1) for states in rows.hidden()]  # of each live row (N, E)
    for step in count(1):
        logprobs = log_probabilities(logits, step)
        filtered = apply(filters, logits, [texts[sample] for sample in live]).softmax(dim=1)
        probabilities, candidates = filtered.topk(min(top_k, logits.shape[1]), dim=1)  # (B, k)
        rows.select([row for row in range(len(live)) for _ in range(candidates.shape[1])])
        ahead = rows.step(candidates.flatten())  # (B * k, V)
        states = F.normalize(torch.cat(rows.hidden()), dim=1).view(*candidates.shape, -1)  # (B, k, E)
        resemblance = torch.stack(
            [(own @ before.T).amax(dim=1) for own, before in zip(states, past, strict=True)]
        )  # (B, k)
        score = (1 - penalty_alpha) * probabilities - penalty_alpha * resemblance
        chosen = score.masked_fill(probabilities == 0, -torch.inf).argmax(dim=1).tolist()
        staying = []
        for row, (sample, pick) in enumerate(zip(live, chosen, strict=True)):
            token = int(candidates[row, pick])
            if math.isnan(probabilities[row, pick]):  # the softmax of a row all of whose tokens are banned
                yield Token.none_left(sample)
                continue
            texts[sample].append(token)
            reason = finish(sample, texts[sample].new)
            yield Token(sample, token, logprobs[row, token].item(), reason)
            if reason is None:
                staying.append(row)
        if not staying:
            return
        past = [torch.cat([past[row], states[row, chosen[row]][None]]) for row in staying]
        kept = [row * candidates.shape[1] + chosen[row] for row in staying]
        rows.select(kept)
        logits, live = ahead[kept], [live[row] for row in staying]
