"""Beam search (Lowerre 1976; for text Graves 2012), its diverse variant (Vijayakumar et al. 2018), and its drawing one.

The search keeps up to K unfinished texts of a prompt side by side. A step asks the model for the next-token
log-probabilities of each, looks at the best continuations over all of them together, sets aside those that end,
and goes on with the K best of the rest. A beam dies where all its next tokens are banned. In diverse beam search the K
beams form groups that are searched one after the other, and a token that an earlier group has just taken costs the
later groups a penalty.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import torch
from torch import Tensor

from gpt2tg.decoding.interface import ALL_BANNED, Filter, Finish, Rows, Text, apply, log_probabilities
from gpt2tg.decoding.ordering import highest

# (K, V) scores of all continuations of a group, and a number -> the indices of so many of them in the flattened
# scores: the best first, or drawn.
Propose = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class BeamSettings:
    """How a search weighs and when it ends.

    `early_stopping` is "true" (end as soon as K texts are finished), "false" (end when no live text seems able to
    become better than the worst finished one) or "never" (end when none can).
    """

    num_beams: int
    end_tokens: int = 1
    """How many different tokens end a text."""
    early_stopping: str = "false"
    length_penalty: float = 1.0
    groups: int = 1
    diversity_penalty: float = 0.0

    def ranking_score(self, score: float, length: int) -> float:
        """What finished texts are ranked by: the mean score per new token, at a length penalty of 1."""
        return score / max(length, 1) ** self.length_penalty

    @property
    def group_size(self) -> int:
        """Beams of each group."""
        return self.num_beams // self.groups

    @property
    def candidates(self) -> int:
        """Continuations looked at in a step: enough for all to go on though each beam may end in each end token."""
        return (1 + self.end_tokens) * self.group_size


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
    finish: Finish,
) -> Iterator[tuple[int, Search]]:
    """Search each prompt, all of them side by side; a prompt whose search has ended leaves the batch.

    Args:
        rows: the model.
        prompts: ids to continue.
        room: for each prompt, how many new tokens there may be.
        filters: applied to the log-probabilities, in this order.
        proposers: for each prompt, how continuations are picked.
        finish: looks at every continuation that is picked.

    Yields:
        After each step every search that took part in it, with the index of its prompt.

    Raises:
        NotFiniteError: the model's logits are no numbers.
    """
    searches = [
        Search(index, prompt, room[index], settings, proposers[index], finish) for index, prompt in enumerate(prompts)
    ]
    active = searches
    logits = rows.start(prompts)
    for step in range(1, max(room) + 1):
        logprobs = log_probabilities(logits, step)
        scores = apply(filters, logprobs, [text for search in active for text in search.texts()])
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
    """The search for continuations of one prompt: one group of beams, or several that keep out of each other's way."""

    def __init__(
        self, index: int, prompt: Sequence[int], room: int, settings: BeamSettings, propose: Propose, finish: Finish
    ) -> None:
        self.index = index
        self._texts = [Text.after(prompt)]  # of the live beams, as the filters see them
        self._settings = settings

        def ends(ids: tuple[int, ...]) -> str | None:
            return finish(index, ids) or ("length" if len(ids) == room else None)

        self._groups = [Group(room, settings, propose, ends) for _ in range(settings.groups)]
        self._is_first_step = True

    @property
    def live(self) -> list[Hypothesis]:
        """The unfinished texts, group after group; a single empty one before the first step."""
        return [Hypothesis()] if self._is_first_step else [beam for group in self._groups for beam in group.live]

    @property
    def finished(self) -> list[Hypothesis]:
        """The finished texts of all groups, the best first; then those that could not go on, where no beam could."""
        finished = [text for group in self._groups for text in group.finished]
        died = [text for group in self._groups for text in group.died]
        return _best_first(finished) + _best_first(died)

    @property
    def is_over(self) -> bool:
        """Whether no group goes on."""
        return all(group.is_over for group in self._groups)

    @property
    def agreed(self) -> tuple[int, ...]:
        """The first ids of every text that may still be given: whatever comes, the result begins with them."""
        texts = [text.ids for group in self._groups for text in (*group.live, *group.finished)]
        same = takewhile(lambda ids: len(set(ids)) == 1, zip(*texts, strict=False))
        return tuple(ids[0] for ids in same)

    def texts(self) -> list[Text]:
        """Each live text as the filters see it."""
        return self._texts

    def advance(self, logprobs: Tensor, scores: Tensor) -> list[int]:
        """One step of every group.

        Args:
            logprobs: (K, V) the model's log-probabilities after each live text.
            scores: (K, V) the same after the filters.

        Returns:
            For each text that lives on, the row of the one it continues.
        """
        taken: Counter[int] = Counter()  # tokens that earlier groups chose in this step
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
    """Hamming diversity: a token costs `penalty` for each beam of an earlier group that has taken it."""
    if not taken or not penalty:
        return scores
    scores = scores.clone()
    counts = torch.tensor(list(taken.values()), dtype=scores.dtype, device=scores.device)
    scores[:, list(taken)] -= penalty * counts
    return scores


class Group:
    """Beams that compete with each other."""

    def __init__(
        self, room: int, settings: BeamSettings, propose: Propose, ends: Callable[[tuple[int, ...]], str | None]
    ) -> None:
        self.live = [Hypothesis()]
        self.finished: list[Hypothesis] = []
        self.died: list[Hypothesis] = []
        """The live texts, where none of them could go on and too few had finished."""
        self.is_over = False
        self._room = room
        self._settings = settings
        self._size = settings.group_size
        self._propose = propose
        self._ends = ends

    def advance(self, logprobs: Tensor, scores: Tensor) -> list[int]:
        """One step: propose, set aside, go on. Returns the parent of each text that lives on, none once it is over."""
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
        """Continuations as (parent, text), in the order in which they were proposed."""
        so_far = torch.tensor([beam.score for beam in self.live], device=scores.device)
        total = scores + so_far[:, None]  # (K, V)
        chosen = self._propose(total, self._settings.candidates)
        parents, tokens = chosen // scores.shape[1], chosen % scores.shape[1]
        columns = parents, tokens, total.flatten()[chosen], logprobs.flatten()[chosen]
        steps = zip(*(column.tolist() for column in columns), strict=True)
        return [(parent, self._extend(self.live[parent], token, score, gain)) for parent, token, score, gain in steps]

    def _extend(self, beam: Hypothesis, token: int, score: float, gain: float) -> Hypothesis:
        ids = (*beam.ids, token)
        ranking_score = self._settings.ranking_score(score, len(ids))
        return Hypothesis(ids, score, beam.logprob + gain, ranking_score, self._ends(ids))

    def _set_aside_finished(self, candidates: list[tuple[int, Hypothesis]]) -> None:
        """Keep the best finished texts. Only the first candidates count, as many as beams: the others are spares."""
        ended = [text for _, text in candidates[: self._size] if text.finish_reason]
        self.finished = _best_first([*self.finished, *ended])[: self._size]

    def _go_on_with(self, candidates: list[tuple[int, Hypothesis]]) -> list[int]:
        """The best unfinished texts live on. Returns their parents."""
        unfinished = [(parent, text) for parent, text in candidates if text.finish_reason is None]
        best_first = sorted(unfinished, key=lambda candidate: -candidate[1].score)[: self._size]
        self.live = [text for _, text in best_first]
        return [parent for parent, _ in best_first]

    def _die(self) -> None:
        """End, since every token is banned after every live text."""
        scores = [self._settings.ranking_score(beam.score, len(beam.ids)) for beam in self.live]
        ended = zip(self.live, scores, strict=True)
        died = [replace(beam, finish_reason=ALL_BANNED, ranking_score=score) for beam, score in ended]
        self.died = _best_first(died)[: self._size - len(self.finished)]
        self.live, self.is_over = [], True

    def _has_enough(self) -> bool:
        return self._settings.early_stopping == "true" and len(self.finished) == self._size

    def _can_improve(self) -> bool:
        """Might the best live text, once finished, still beat the worst finished one?"""
        if len(self.finished) < self._size:
            return True
        hopeful = self._settings.early_stopping == "never" and self._settings.length_penalty > 0
        length = self._room if hopeful else len(self.live[0].ids)
        return self._settings.ranking_score(self.live[0].score, length) > self.finished[-1].ranking_score


def _best_first(texts: list[Hypothesis]) -> list[Hypothesis]:
    return sorted(texts, key=lambda text: -text.ranking_score)


def best(scores: Tensor, count: int) -> Tensor:
    """The indices of the highest scores, best first, none of them banned. (K, V) -> (count,) or fewer"""
    found, indices = highest(scores, count)
    return indices[found > -torch.inf]


class DrawWithoutReplacement:
    """Draws continuations in proportion to their probability, none of them twice.

    One uniform number a draw, by inverse distribution over what has not been drawn yet.
    """

    def __init__(self, stream: random.Random) -> None:
        self._stream = stream

    def __call__(self, scores: Tensor, count: int) -> Tensor:
        """(K, V) -> (count,), or fewer where fewer have any probability."""
        probabilities = scores.flatten().cpu().double().softmax(dim=0)
        drawn: list[int] = []
        for _ in range(min(count, int((probabilities > 0).sum()))):
            mass = probabilities.cumsum(dim=0)
            point = self._stream.random() * mass[-1]
            index = int(torch.searchsorted(mass, point, right=True))
            drawn.append(index)
            probabilities[index] = 0
        return torch.tensor(drawn, dtype=torch.int64, device=scores.device)
