"""Greedy decoding and sampling: one loop, the choice of the token passed in."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import count

import torch
from torch import Tensor

from gpt2tg.decoding.interface import Filter, Finish, Rows, Text, Token, apply, is_left, log_probabilities
from gpt2tg.decoding.ordering import argmax

# (B, V) filtered logits and the sample of each row -> (B,) chosen ids.
Choose = Callable[[Tensor, Sequence[int]], Tensor]


def decode(
    rows: Rows,
    prompts: Sequence[Sequence[int]],
    owners: Sequence[int],
    filters: Sequence[Filter],
    choose: Choose,
    finish: Finish,
) -> Iterator[Token]:
    """Write the samples token by token, side by side; each ends when `finish` says so and leaves the batch.

    Args:
        rows: the model.
        prompts: ids to continue. Each is read once, however many samples continue it.
        owners: for each sample, the index of its prompt.
        filters: applied to the logits before the choice, in this order.
        choose: picks the next token of each row.
        finish: looks at every sample after each of its tokens.

    Raises:
        NotFiniteError: the model's logits are no numbers.
    """
    texts = [Text.after(prompts[owner]) for owner in owners]
    live = list(range(len(owners)))
    logits = rows.start(prompts)[list(owners)]
    rows.select(owners)
    for step in count(1):
        own = log_probabilities(logits, step)
        filtered = apply(filters, logits, [texts[sample] for sample in live])
        tokens = choose(filtered, live)
        logprobs, left = own.gather(1, tokens[:, None])[:, 0], is_left(filtered, tokens)
        staying = []
        for row, (sample, token, logprob) in enumerate(zip(live, tokens.tolist(), logprobs.tolist(), strict=True)):
            if not left[row]:
                yield Token.none_left(sample)
                continue
            texts[sample].append(token)
            reason = finish(sample, texts[sample].new)
            yield Token(sample, token, logprob, reason)
            if reason is None:
                staying.append(row)
        if not staying:
            return
        if len(staying) < len(live):
            rows.select(staying)
            live, tokens = [live[row] for row in staying], tokens[staying]
        logits = rows.step(tokens)


def most_probable(logits: Tensor, samples: Sequence[int] = ()) -> Tensor:
    """Greedy choice. (B, V) -> (B,)"""
    return argmax(logits)


class Draw:
    """Random choice. Every sample draws from a stream of its own, one uniform number a token.

    So a text depends on its own stream alone, not on which other samples are in the batch.
    """

    def __init__(self, streams: Sequence[random.Random]) -> None:
        self._streams = streams

    def __call__(self, logits: Tensor, samples: Sequence[int]) -> Tensor:
        """(B, V) -> (B,)"""
        uniform = torch.tensor([self._streams[sample].random() for sample in samples], dtype=torch.float64)
        if logits.device.type == "mps":  # Apple's GPUs have no 64-bit floats
            return drawn(logits.cpu(), uniform).to(logits.device)
        return drawn(logits, uniform.to(logits.device))


def drawn(logits: Tensor, uniform: Tensor) -> Tensor:
    """The tokens that (B,) uniform 64-bit numbers in [0, 1) choose. (B, V) -> (B,)"""
    return inverse_distribution(logits.softmax(dim=1), uniform)


def inverse_distribution(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The token at which the cumulative probability first exceeds the uniform number.

    A token of probability zero is never chosen: the sum does not grow there. A row without any probability, all of
    whose tokens are banned, gets some token.

    Args:
        probabilities: (B, V), not negative; need not sum to one.
        uniform: (B,) in [0, 1).
    """
    mass = probabilities.double().cumsum(dim=1)
    found = torch.searchsorted(mass, (uniform * mass[:, -1])[:, None], right=True)[:, 0]
    return found.clamp(max=probabilities.shape[1] - 1)


def stream(seed: int, prompt: int, sample: int) -> random.Random:
    """The source of chance of one sample: the same on every machine, for every batch it may be part of."""
    return random.Random(f"{seed}/{prompt}/{sample}")
