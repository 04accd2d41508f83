"""Beam search (Lowerre 1976; for text Graves 2012), diverse beam search (Vijayakumar et al. 2018) and beam sampling.

The search keeps up to K unfinished texts (beams) of a prompt. A step asks the model for the next-token
log-probabilities of each, takes the best continuations of all of them together, sets aside those that end, and
continues the K best of the rest. A beam dies if all its next tokens are banned.

In diverse beam search the K beams form groups that are advanced one after the other. A token that an earlier group has
chosen in the same step costs the later groups a penalty. In beam sampling the continuations are drawn at random.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Literal

import torch
from torch import Tensor

from gpt2tg.decoding.interface import Filter, Finish, FinishReason, Rows, Text, apply_filters, log_probabilities
from gpt2tg.decoding.ordering import highest

# (K, V) scores of all continuations of a group, and a count -> the indices of that many continuations in the flattened
# scores: the best ones, best first, or drawn ones. Fewer if there are fewer. Those that are banned do not count.
Propose = Callable[[Tensor, int], Tensor]


# When a search with K finished texts ends: "true", at once; "false", when the best live text, ranked as if it ended
# now, is no better than the worst finished one; "never", when no live text can become better than that one.
EarlyStopping = Literal["true", "false", "never"]


@dataclass(frozen=True)
class BeamSettings:
    """The settings of a beam search."""

    num_beams: int
    end_tokens: int = 1
    """The number of different tokens that end a text."""
    early_stopping: EarlyStopping = "false"
    length_penalty: float = 1.0
    groups: int = 1
    diversity_penalty: float = 0.0

    def ranking_score(self, score: float, length: int) -> float:
        """Return the score by which finished texts are ranked: the mean per new token if the length penalty is 1."""
        return score / math.pow(max(length, 1), self.length_penalty)

    @property
    def group_size(self) -> int:
        """The number of beams in each group."""
        return self.num_beams // self.groups

    @property
    def candidates(self) -> int:
        """The number of continuations per step: enough to keep all beams, even if each proposes every end token."""
        return (1 + self.end_tokens) * self.group_size


@dataclass(frozen=True)
class Hypothesis:
    """A live or finished text: its new ids and their scores."""

    ids: tuple[int, ...] = ()
    score: float = 0.0
    """Sum of the filtered log-probabilities, by which live texts are compared."""
    logprob: float = 0.0
    """Sum of the log-probabilities under the model, before any filter, in nats."""
    ranking_score: float = 0.0
    """The score after the length penalty."""
    finish_reason: FinishReason | None = None


def beam_search(
    rows: Rows,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: Sequence[int],
    filters: Sequence[Filter],
    settings: BeamSettings,
    proposers: Sequence[Propose],
    finish: Finish,
) -> Iterator[tuple[int, Search]]:
    """Search each prompt, all of them as one batch. A prompt whose search is over leaves the batch.

    Args:
        rows: the model.
        prompts: the ids to continue.
        max_new_tokens: for each prompt, the largest number of new tokens.
        filters: applied to the log-probabilities, in this order.
        proposers: for each prompt, how continuations are picked.
        finish: called for every continuation that is picked.

    Yields:
        After each step, every search that took part in it, with the index of its prompt.

    Raises:
        NotFiniteError: the model's logits are not finite.
    """
    active = [
        Search(index, prompt, max_new_tokens[index], settings, proposers[index], finish)
        for index, prompt in enumerate(prompts)
    ]
    logits = rows.start(prompts)
    for step in range(1, max(max_new_tokens) + 1):
        logprobs = log_probabilities(logits, step)
        scores = apply_filters(filters, logprobs, [text for search in active for text in search.texts()])
        parents, first_row = [], 0
        for search in active:
            own = slice(first_row, first_row + len(search.live))
            parents += [first_row + parent for parent in search.advance(logprobs[own], scores[own])]
            first_row = own.stop
        yield from ((search.index, search) for search in active)
        active = [search for search in active if not search.is_over]
        if not active:
            return
        rows.select(parents)
        logits = rows.step(torch.tensor([beam.ids[-1] for search in active for beam in search.live]))


class Search:
    """The search of one prompt: one group of beams, or several in diverse beam search."""

    def __init__(
        self,
        index: int,
        prompt: Sequence[int],
        max_new_tokens: int,
        settings: BeamSettings,
        propose: Propose,
        finish: Finish,
    ) -> None:
        self.index = index
        self._texts = [Text.after(prompt)]  # of the live beams, for the filters
        self._settings = settings

        def ends(ids: tuple[int, ...]) -> FinishReason | None:
            return finish(index, ids) or ("length" if len(ids) == max_new_tokens else None)

        self._groups = [Group(max_new_tokens, settings, propose, ends) for _ in range(settings.groups)]
        self._is_first_step = True

    @property
    def live(self) -> list[Hypothesis]:
        """The unfinished texts, group by group; one empty text before the first step."""
        return [Hypothesis()] if self._is_first_step else [beam for group in self._groups for beam in group.live]

    @property
    def finished(self) -> list[Hypothesis]:
        """The finished texts of all groups, the best first, then those that ended because everything was banned."""
        finished = [text for group in self._groups for text in group.finished]
        died = [text for group in self._groups for text in group.died]
        return _best_first(finished) + _best_first(died)

    @property
    def is_over(self) -> bool:
        """Whether all groups are over."""
        return all(group.is_over for group in self._groups)

    @property
    def agreed(self) -> tuple[int, ...]:
        """The common prefix of all live and finished texts: the result is certain to begin with it."""
        texts = [text.ids for group in self._groups for text in (*group.live, *group.finished)]
        same = takewhile(lambda ids: len(set(ids)) == 1, zip(*texts, strict=False))
        return tuple(ids[0] for ids in same)

    def texts(self) -> list[Text]:
        """Return each live text, for the filters."""
        return self._texts

    def advance(self, logprobs: Tensor, scores: Tensor) -> list[int]:
        """Advance every group by one token.

        Args:
            logprobs: (K, V) the model's log-probabilities after each live text.
            scores: (K, V) the same after the filters.

        Returns:
            For each text that goes on, the row of the text that it continues.
        """
        taken: Counter[int] = Counter()  # the tokens that earlier groups chose in this step
        parents, first_row = [], 0
        for group in self._groups:
            own = slice(0, 1) if self._is_first_step else slice(first_row, first_row + len(group.live))
            first_row = own.stop
            if group.is_over:
                continue
            penalised = _penalised(scores[own], taken, self._settings.diversity_penalty)
            parents += [own.start + parent for parent in group.advance(logprobs[own], penalised)]
            taken.update(beam.ids[-1] for beam in group.live)
        self._is_first_step = False
        pairs = zip(parents, self.live, strict=True)
        self._texts = [self._texts[parent].continued(beam.ids[-1]) for parent, beam in pairs]
        return parents


def _penalised(scores: Tensor, taken: Counter[int], penalty: float) -> Tensor:
    """Subtract `penalty` from a token for each beam of an earlier group that chose it: Hamming diversity."""
    if not taken or not penalty:
        return scores
    tokens = torch.tensor(list(taken), device=scores.device)
    counts = torch.tensor(list(taken.values()), dtype=scores.dtype, device=scores.device)
    return scores.index_add(1, tokens, (-penalty * counts).expand(len(scores), -1))


class Group:
    """Beams that compete with each other."""

    def __init__(
        self,
        max_new_tokens: int,
        settings: BeamSettings,
        propose: Propose,
        ends: Callable[[tuple[int, ...]], FinishReason | None],
    ) -> None:
        self.live = [Hypothesis()]
        self.finished: list[Hypothesis] = []
        self.died: list[Hypothesis] = []
        """The best texts that ended because every next token was banned: as many as finished texts were missing."""
        self.is_over = False
        self._max_new_tokens = max_new_tokens
        self._settings = settings
        self._size = settings.group_size
        self._propose = propose
        self._ends = ends

    def advance(self, logprobs: Tensor, scores: Tensor) -> list[int]:
        """Advance by one token. Returns the parent of each text that goes on; an empty list once the group is over."""
        candidates = self._candidates(logprobs, scores)
        if not candidates:
            self._die()
            return []
        self._set_aside_finished(candidates)
        parents = self._go_on_with(candidates)
        self.is_over = not self.live or self._has_enough() or not self._can_improve()
        if self.is_over:
            self.live, parents = [], []
        return parents

    def _candidates(self, logprobs: Tensor, scores: Tensor) -> list[tuple[int, Hypothesis]]:
        """Return continuations as (parent, text), in the order in which they were proposed."""
        so_far = torch.tensor([beam.score for beam in self.live], device=scores.device)
        total = scores + so_far[:, None]  # (K, V)
        chosen = self._propose(total, self._settings.candidates)
        # Fetched together, because each fetch is a host sync on a GPU.
        sums, gains = torch.stack([total.flatten()[chosen], logprobs.flatten()[chosen]]).tolist()
        candidates = []
        for place, score, gain in zip(chosen.tolist(), sums, gains, strict=True):
            parent, token = divmod(place, scores.shape[1])
            if score > -math.inf:
                candidates.append((parent, self._extend(self.live[parent], token, score, gain)))
        return candidates

    def _extend(self, beam: Hypothesis, token: int, score: float, gain: float) -> Hypothesis:
        ids = (*beam.ids, token)
        ranking_score = self._settings.ranking_score(score, len(ids))
        return Hypothesis(ids, score, beam.logprob + gain, ranking_score, self._ends(ids))

    def _set_aside_finished(self, candidates: list[tuple[int, Hypothesis]]) -> None:
        """Keep the best finished texts. Only the first candidates can finish: as many as there are beams.

        The other candidates only ensure that enough unfinished texts remain. transformers does the same.
        """
        ended = [text for _, text in candidates[: self._size] if text.finish_reason]
        self.finished = _best_first([*self.finished, *ended])[: self._size]

    def _go_on_with(self, candidates: list[tuple[int, Hypothesis]]) -> list[int]:
        """Continue the best unfinished texts. Returns their parents."""
        unfinished = [(parent, text) for parent, text in candidates if text.finish_reason is None]
        best_first = sorted(unfinished, key=lambda candidate: -candidate[1].score)[: self._size]
        self.live = [text for _, text in best_first]
        return [parent for parent, _ in best_first]

    def _die(self) -> None:
        """End the group, because all continuations of all live texts are banned."""
        scores = [self._settings.ranking_score(beam.score, len(beam.ids)) for beam in self.live]
        ended = zip(self.live, scores, strict=True)
        died = [replace(beam, finish_reason="banned", ranking_score=score) for beam, score in ended]
        self.died = _best_first(died)[: self._size - len(self.finished)]
        self.live, self.is_over = [], True

    def _has_enough(self) -> bool:
        return self._settings.early_stopping == "true" and len(self.finished) == self._size

    def _can_improve(self) -> bool:
        """Whether the best live text may still become better than the worst finished one."""
        if len(self.finished) < self._size:
            return True
        hopeful = self._settings.early_stopping == "never" and self._settings.length_penalty > 0
        length = self._max_new_tokens if hopeful else len(self.live[0].ids)
        return self._settings.ranking_score(self.live[0].score, length) > self.finished[-1].ranking_score


def _best_first(texts: list[Hypothesis]) -> list[Hypothesis]:
    return sorted(texts, key=lambda text: -text.ranking_score)


def best(scores: Tensor, count: int) -> Tensor:
    """Return the flat indices of the highest scores, best first. (K, V) -> (count,), or fewer if there are fewer"""
    return highest(scores, count)[1]


class DrawWithoutReplacement:
    """Draws continuations in proportion to their probability, none of them twice.

    Each draw takes one uniform number and inverts the cumulative distribution of what has not been drawn yet.
    """

    def __init__(self, stream: random.Random) -> None:
        self._stream = stream

    def __call__(self, scores: Tensor, count: int) -> Tensor:
        """Return flat indices in the order of the draws. (K, V) -> (count,), or fewer if fewer have any probability"""
        probabilities = scores.flatten().cpu().double().softmax(dim=0)
        drawn: list[int] = []
        for _ in range(min(count, int((probabilities > 0).sum()))):
            mass = probabilities.cumsum(dim=0)
            point = self._stream.random() * mass[-1]
            index = int(torch.searchsorted(mass, point, right=True))
            drawn.append(index)
            probabilities[index] = 0
        return torch.tensor(drawn, dtype=torch.int64, device=scores.device)
