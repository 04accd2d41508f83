"""When texts are written in captured steps (`engine/cuda_graph.py`), and with what choice inside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.decoding.interface import Finish, Token, not_finite
from gpt2tg.decoding.sampling import drawn, most_probable
from gpt2tg.engine.continuous_batch import ContinuousBatch, QueuedText
from gpt2tg.engine.cuda_graph import Choose, bucket_for
from gpt2tg.engine.model import GPT2
from gpt2tg.generation.filter_chain import Shaping, on_the_distribution, on_the_text_so_far, on_unused
from gpt2tg.options import DecodingOptions


class CapturedSteps:
    """Lends batches that are written in captured steps. The last one is kept, for a capture takes time."""

    def __init__(
        self, model: GPT2, tokenizer: TextTokenizer, end_ids: Sequence[int], unused: Tensor | None = None
    ) -> None:
        self.are_used = model.device.type == "cuda"
        self._model, self._tokenizer, self._end_ids = model, tokenizer, end_ids
        self._unused = unused
        self._kept: tuple[object, ContinuousBatch] | None = None

    def suit(self, options: DecodingOptions, length: int) -> bool:
        """Whether texts of so many tokens are written in them: one token after the other, within the model's positions,
        nothing that changes the logits with a look at the text, and no prompt lookup asked for."""
        return (
            self.are_used
            and not options.strategy.beams
            and options.decoding != "contrastive"
            and length <= self._model.shape.n_positions
            and not options.prompt_lookup
            and not on_the_text_so_far(options, self._tokenizer, self._end_ids)
        )

    @contextmanager
    def lend(self, options: DecodingOptions, rows: int, length: int) -> Iterator[ContinuousBatch]:
        """A batch for texts of so many tokens. After an error it is not kept."""
        shaping = on_the_distribution(options, len(self._end_ids))
        capacity = bucket_for(length, self._model.shape.n_positions)
        kind = (rows, capacity, options.strategy.samples, *((step.func, *step.keywords.items()) for step in shaping))
        kept = self._kept if self._kept and self._kept[0] == kind else None
        self.drop()  # its memory is free before more is asked for
        if kept is None:
            choose = choice([*on_unused(self._unused), *shaping], options.strategy.samples)
            kept = kind, ContinuousBatch(self._model, rows, capacity, choose, self._end_ids)
        try:
            yield kept[1]
        except GeneratorExit:  # whoever wanted the texts has enough of them
            self._kept = kept
            raise
        self._kept = kept

    def drop(self) -> None:
        """Keep nothing."""
        self._kept = None


def choice(shaping: Sequence[Shaping], samples: bool) -> Choose:
    """From logits and uniform numbers to tokens, as `sampling.decode` comes to them."""

    def choose(logits: Tensor, uniform: Tensor) -> Tensor:
        for change in shaping:
            logits = change(logits)
        return drawn(logits, uniform) if samples else most_probable(logits)

    return choose


def decode(batch: ContinuousBatch, entries: Iterable[QueuedText], finish: Finish) -> Iterator[Token]:
    """As `sampling.decode`: the same tokens, in the same order unless a text takes the row of another.

    Raises:
        NotFiniteError: the model's logits are no numbers.
    """
    counts: dict[int, int] = {}
    for written in batch.write(entries, finish):
        counts[written.sample] = counts.get(written.sample, 0) + 1
        if math.isnan(written.logprob):
            raise not_finite(counts[written.sample])
        yield Token(*written)
