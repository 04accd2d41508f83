"""Greedy decoding and sampling: one loop, with the choice of the token as an argument."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import count

import torch
from torch import Tensor

from gpt2tg.decoding.interface import Filter, Finish, Rows, Token, apply_filters, is_allowed, log_probabilities
from gpt2tg.decoding.live_texts import LiveTexts
from gpt2tg.decoding.ordering import argmax

# (B, V) filtered logits and the sample of each row -> (B,) chosen ids.
Choose = Callable[[Tensor, Sequence[int]], Tensor]

# The same, and a number n -> the ids that a draft guesses n places after the next token.
ChooseAhead = Callable[[Tensor, Sequence[int], int], Tensor]


def decode(
    rows: Rows,
    prompts: Sequence[Sequence[int]],
    owners: Sequence[int],
    filters: Sequence[Filter],
    choose: Choose,
    finish: Finish,
) -> Iterator[Token]:
    """Generate samples token by token, as a batch. A sample that ends leaves the batch.

    Args:
        rows: the model.
        prompts: the ids to continue. Each prompt is read once, however many samples continue it.
        owners: for each sample, the index of its prompt.
        filters: applied to the logits before the choice, in this order.
        choose: picks the next token of each row.
        finish: called for each sample after each of its tokens.

    Raises:
        NotFiniteError: the model's logits are not finite.
    """
    live = LiveTexts([prompts[owner] for owner in owners], finish)
    logits = rows.start(prompts)[list(owners)]
    rows.select(owners)
    for step in count(1):
        logprobs = log_probabilities(logits, step)
        filtered = apply_filters(filters, logits, live.texts)
        tokens = choose(filtered, live.samples)
        staying = yield from live.append(tokens, logprobs, is_allowed(filtered, tokens))
        if not staying:
            return
        if len(staying) < len(tokens):
            rows.select(staying)
            tokens = tokens[staying]
        logits = rows.step(tokens)


def most_probable(logits: Tensor, samples: Sequence[int] = ()) -> Tensor:
    """Return the greedy choice. (B, V) -> (B,)"""
    return argmax(logits)


def most_probable_ahead(logits: Tensor, samples: Sequence[int], places: int) -> Tensor:
    """Return the greedy choice of a draft. (B, V) -> (B,)"""
    return argmax(logits)


class Draw:
    """Random choice. Each sample has its own stream of random numbers and takes one uniform number per token.

    A text therefore depends on its own stream only, not on the other samples in the batch.
    """

    def __init__(self, streams: Sequence[random.Random]) -> None:
        self._streams = streams
        self._seen: dict[int, deque[float]] = {}  # by sample: the next numbers, if a draft has looked at them

    def __call__(self, logits: Tensor, samples: Sequence[int]) -> Tensor:
        """Draw one token per row. (B, V) -> (B,)"""
        return self._draw(logits, [self._next(sample) for sample in samples])

    def ahead(self, logits: Tensor, samples: Sequence[int], places: int) -> Tensor:
        """Draw one token per row with the number that the row will use so many places after its next one.

        It is not used up: the token of that place will be drawn with the same number.
        """
        return self._draw(logits, [self._peek(sample, places) for sample in samples])

    def _next(self, sample: int) -> float:
        seen = self._seen.get(sample)
        return seen.popleft() if seen else self._streams[sample].random()

    def _peek(self, sample: int, places: int) -> float:
        seen = self._seen.setdefault(sample, deque())
        while len(seen) <= places:
            seen.append(self._streams[sample].random())
        return seen[places]

    def _draw(self, logits: Tensor, numbers: Sequence[float]) -> Tensor:
        uniform = torch.tensor(numbers, dtype=torch.float64)
        if logits.device.type == "mps":  # Apple's GPUs have no float64
            return drawn(logits.cpu(), uniform).to(logits.device)
        return drawn(logits, uniform.to(logits.device))


def drawn(logits: Tensor, uniform: Tensor) -> Tensor:
    """Return the tokens that (B,) uniform float64 numbers in [0, 1) select. (B, V) -> (B,)"""
    return inverse_distribution(logits.softmax(dim=1), uniform)


def inverse_distribution(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Return the token at which the cumulative probability first exceeds the uniform number. (B, V) -> (B,)

    A token of probability zero is never chosen, since the sum does not grow there. A row of zeros, in which every
    token is banned, gets an arbitrary token.

    Args:
        probabilities: (B, V), not negative. They need not sum to one.
        uniform: (B,) in [0, 1).
    """
    mass = probabilities.double().cumsum(dim=1)
    found = torch.searchsorted(mass, (uniform * mass[:, -1])[:, None], right=True)[:, 0]
    return found.clamp(max=probabilities.shape[1] - 1)


def stream(seed: int, prompt: int, sample: int) -> random.Random:
    """Return the stream of random numbers of one sample: the same on every machine and in every batch."""
    return random.Random(f"{seed}/{prompt}/{sample}")
