"""Beam search (Lowerre 1976; for text Graves 2012), and its drawing variant.

The search keeps up to K unfinished texts of a prompt side by side. A step asks the model for the next-token
log-probabilities of each, looks at the best continuations over all of them together, sets aside those that end,
and goes on with the K best of the rest.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2tg.decoding.interface import Filter, Rows, apply, require_finite

# Scores (K, V) of all continuations of one prompt and a number -> the indices of so many of them in the flattened
# scores: the best first, or drawn.
Propose = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class BeamSettings:
    """How a search weighs and when it ends.

    `early_stopping` is "true" (end as soon as K texts are finished), "false" (end when no live text seems able to
    become better than the worst finished one) or "never" (end when none can).
    """

    num_beams: int
    end_ids: frozenset[int]
    early_stopping: str = "false"
    length_penalty: float = 1.0

    def ranking_score(self, score: float, length: int) -> float:
        """What finished texts are ranked by: the mean score per new token, at a length penalty of 1."""
        return score / length**self.length_penalty

    @property
    def candidates(self) -> int:
        """Continuations looked at in a step: enough for K to go on though every beam may end in every end token."""
        return max(2, 1 + len(self.end_ids)) * self.num_beams


@dataclass(frozen=True)
class Hypothesis:
    """A text on its way or finished: its new ids and what they add up to."""

    ids: tuple[int, ...] = ()
    score: float = 0.0
    """Sum of the filtered log-probabilities, by which live texts compete."""
    logprob: float = 0.0
    """Sum of the log-probabilities under the model itself, in nats."""
    ranking_score: float = 0.0
    """The score after the length penalty; of finished texts only."""
    finish_reason: str | None = None


def beam_search(
    rows: Rows,
    prompts: Sequence[Sequence[int]],
    room: Sequence[int],
    filters: Sequence[Filter],
    settings: BeamSettings,
    proposers: Sequence[Propose],
) -> list[list[Hypothesis]]:
    """Search each prompt, all of them side by side; a prompt whose search has ended leaves the batch.

    Args:
        rows: the model.
        prompts: ids to continue.
        room: for each prompt, how many new tokens there may be.
        filters: applied to the log-probabilities, in this order.
        proposers: for each prompt, how continuations are picked.

    Returns:
        For each prompt its finished texts, the best first, at most K.

    Raises:
        NotFiniteError: the model's logits are no numbers.
    """
    searches = [Search(list(prompt), space, settings) for prompt, space in zip(prompts, room, strict=True)]
    active = list(range(len(searches)))
    logits = rows.start(prompts)
    for step in range(1, max(room) + 1):
        require_finite(logits, step)
        logprobs = logits.log_softmax(dim=1)
        scores = apply(filters, logprobs, [ids for i in active for ids in searches[i].live_ids()])
        parents, first_row = [], 0
        for i in active:
            own = slice(first_row, first_row + len(searches[i].live))
            parents += [first_row + parent for parent in searches[i].advance(logprobs[own], scores[own], proposers[i])]
            first_row = own.stop
        active = [i for i in active if not searches[i].is_over]
        if not active:
            break
        rows.select(parents)
        logits = rows.step(torch.tensor([beam.ids[-1] for i in active for beam in searches[i].live]))
    return [search.finished for search in searches]


class Search:
    """The search for continuations of one prompt."""

    def __init__(self, prompt: list[int], room: int, settings: BeamSettings) -> None:
        self.live = [Hypothesis()]
        self.finished: list[Hypothesis] = []
        self.is_over = False
        self._prompt = prompt
        self._room = room
        self._settings = settings

    def live_ids(self) -> list[list[int]]:
        """The ids of each live text, prompt included."""
        return [[*self._prompt, *beam.ids] for beam in self.live]

    def advance(self, logprobs: Tensor, scores: Tensor, propose: Propose) -> list[int]:
        """One step of the search.

        Args:
            logprobs: (K, V) the model's log-probabilities after each live text.
            scores: (K, V) the same after the filters.

        Returns:
            For each text that lives on, the one it continues; nothing once the search is over.
        """
        candidates = self._candidates(logprobs, scores, propose)
        self._set_aside_finished(candidates)
        self._go_on_with(candidates)
        self.is_over = not self.live or self._has_enough() or not self._can_improve()
        return [] if self.is_over else self._parents

    def _candidates(self, logprobs: Tensor, scores: Tensor, propose: Propose) -> list[tuple[int, Hypothesis]]:
        """Continuations as (parent, text), in the order in which they were proposed."""
        so_far = torch.tensor([beam.score for beam in self.live], device=scores.device)
        total = (scores + so_far[:, None]).flatten()  # (K * V,)
        chosen = propose(total, self._settings.candidates)
        parents, tokens = chosen // scores.shape[1], chosen % scores.shape[1]
        steps = zip(
            parents.tolist(), tokens.tolist(), total[chosen].tolist(), logprobs[parents, tokens].tolist(), strict=True
        )
        return [(parent, self._extend(self.live[parent], token, score, gain)) for parent, token, score, gain in steps]

    def _extend(self, beam: Hypothesis, token: int, score: float, gain: float) -> Hypothesis:
        ids = (*beam.ids, token)
        reason = "eos" if token in self._settings.end_ids else "length" if len(ids) == self._room else None
        return Hypothesis(ids, score, beam.logprob + gain, self._settings.ranking_score(score, len(ids)), reason)

    def _set_aside_finished(self, candidates: list[tuple[int, Hypothesis]]) -> None:
        """Keep the K best finished texts. Only the first K candidates count: the others are spares."""
        ended = [text for _, text in candidates[: self._settings.num_beams] if text.finish_reason]
        self.finished.extend(ended)
        self.finished.sort(key=lambda text: -text.ranking_score)
        del self.finished[self._settings.num_beams :]

    def _go_on_with(self, candidates: list[tuple[int, Hypothesis]]) -> None:
        """The K best unfinished texts live on."""
        unfinished = [(parent, text) for parent, text in candidates if text.finish_reason is None]
        unfinished.sort(key=lambda candidate: -candidate[1].score)
        best = unfinished[: self._settings.num_beams]
        self._parents = [parent for parent, _ in best]
        self.live = [text for _, text in best]

    def _has_enough(self) -> bool:
        return self._settings.early_stopping == "true" and len(self.finished) == self._settings.num_beams

    def _can_improve(self) -> bool:
        """Might the best live text, once finished, still beat the worst finished one?"""
        if len(self.finished) < self._settings.num_beams:
            return True
        hopeful = self._settings.early_stopping == "never" and self._settings.length_penalty > 0
        length = self._room if hopeful else len(self.live[0].ids)
        return self._settings.ranking_score(self.live[0].score, length) > self.finished[-1].ranking_score


def best(scores: Tensor, count: int) -> Tensor:
    """The indices of the highest scores, best first; banned ones only where there is nothing else. (N,) -> (count,)"""
    top = scores.topk(min(count, len(scores)))
    alive = top.values > -torch.inf
    return top.indices[alive] if alive.any() else top.indices[:1]


class DrawWithoutReplacement:
    """Draws continuations in proportion to their probability, none of them twice.

    One uniform number a draw, by inverse distribution over what has not been drawn yet (Yellott 1977 for the
    equivalence with Gumbel-top-k; this is the plain sequential form).
    """

    def __init__(self, stream: random.Random) -> None:
        self._stream = stream

    def __call__(self, scores: Tensor, count: int) -> Tensor:
        """(N,) -> (count,), or fewer where fewer have any probability."""
        probabilities = scores.double().softmax(dim=0)
        drawn: list[int] = []
        for _ in range(min(count, int((probabilities > 0).sum()))):
            mass = probabilities.cumsum(dim=0)
            point = self._stream.random() * mass[-1]
            index = int(torch.searchsorted(mass, point, right=True))
            drawn.append(index)
            probabilities[index] = 0
        return torch.tensor(drawn, device=scores.device)
