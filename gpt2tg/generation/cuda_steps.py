"""Generation with the choice of the token inside a CUDA graph: which texts can use it, and how tokens are chosen.

`engine/decode_step.py` has such steps, which are replayed without a host sync per token. A captured step runs the same
operations every time, so filters that depend on the text so far cannot be part of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

from torch import Tensor

from gpt2tg.decoding.interface import Finish, FinishReason, Token, not_finite_error
from gpt2tg.decoding.sampling import drawn, most_probable
from gpt2tg.engine.continuous_batch import ContinuousBatch, QueuedText
from gpt2tg.engine.decode_step import ChooseOnDevice
from gpt2tg.engine.model import GPT2
from gpt2tg.engine.step_cache import bucket_for
from gpt2tg.generation.filter_chain import LogitsFilter
from gpt2tg.generation.requests import RequestBatch


class ContinuousBatches:
    """Lends a static KV cache with its captured steps. Keeps the last one, because capturing takes time."""

    def __init__(self, model: GPT2) -> None:
        self.are_used = model.device.type == "cuda"
        self._model = model
        self._kept: tuple[object, ContinuousBatch] | None = None

    def suit(self, batch: RequestBatch) -> bool:
        """Whether the tokens of a batch can be chosen inside a CUDA graph.

        It must be greedy or sampled, fit into the context window, have no filter that depends on the text, and not
        ask for prompt lookup.
        """
        options = batch.options
        return (
            self.are_used
            and not options.strategy.beams
            and options.decoding != "contrastive"
            and batch.longest <= self._model.shape.n_positions
            and not options.prompt_lookup
            and not batch.filters.history
        )

    @contextmanager
    def lend(self, batch: RequestBatch, rows: int, length: int) -> Iterator[ContinuousBatch]:
        """Lend a cache of so many rows, for texts of up to `length` tokens. After an error it is not kept."""
        filters, samples = batch.filters, batch.options.strategy.samples
        capacity = bucket_for(length, self._model.shape.n_positions)
        key = (rows, capacity, samples, *((step.func, *step.keywords.items()) for step in filters.distribution))
        kept = self._kept if self._kept and self._kept[0] == key else None
        self.drop()  # frees its memory before the new one is allocated
        if kept is None:
            choose = choice([*filters.unused, *filters.distribution], samples)
            kept = key, ContinuousBatch(self._model, rows, capacity, choose, batch.end_ids)
        try:
            yield kept[1]
        except GeneratorExit:  # the caller has stopped early, which is no error
            self._kept = kept
            raise
        self._kept = kept

    def drop(self) -> None:
        """Free the cache that is kept."""
        self._kept = None


def choice(filters: Sequence[LogitsFilter], samples: bool) -> ChooseOnDevice:
    """Return the function from (B, V) logits and (B,) uniform numbers to tokens, equal to that of `sampling.decode`."""

    def choose(logits: Tensor, uniform: Tensor) -> Tensor:
        for change in filters:
            logits = change(logits)
        return drawn(logits, uniform) if samples else most_probable(logits)

    return choose


def decode_on_gpu(batch: ContinuousBatch, entries: Iterable[QueuedText], finish: Finish) -> Iterator[Token]:
    """Generate the same tokens as `sampling.decode`, in the same order unless a text takes over the row of another.

    Raises:
        NotFiniteError: the model's logits are not finite.
    """
    counts: dict[int, int] = {}
    for written in batch.write(entries, finish):
        counts[written.sample] = counts.get(written.sample, 0) + 1
        if math.isnan(written.logprob):
            raise not_finite_error(counts[written.sample])
        # The engine returns what `finish` gave it. In quotes: to make the type takes longer than all else here.
        reason = cast("FinishReason | None", written.finish_reason)
        yield Token(written.sample, written.id, written.logprob, reason)
