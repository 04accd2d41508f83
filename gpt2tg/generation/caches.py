"""Which kind of KV cache a batch of texts is generated in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gpt2tg.engine.context import Context
from gpt2tg.engine.contexts import has_reusable_context, new_context
from gpt2tg.engine.continuous_batch import ContinuousBatch
from gpt2tg.engine.model import GPT2
from gpt2tg.engine.sliding import SlidingRows
from gpt2tg.generation.cuda_steps import ContinuousBatches
from gpt2tg.generation.requests import RequestBatch


class Caches:
    """Lends KV caches for generation, and keeps those that the next text can reuse."""

    def __init__(self, model: GPT2, continuous_batches: ContinuousBatches) -> None:
        self.spare: Context | None = None
        """The cache of the last single text, while no text uses it."""
        self._model = model
        self._continuous_batches = continuous_batches

    @contextmanager
    def lend(
        self, batch: RequestBatch, rows: int | None = None, has_draft: bool = False
    ) -> Iterator[Context | SlidingRows | ContinuousBatch]:
        """Lend the cache that suits a batch.

        Args:
            rows: the number of rows of a continuous batch, if there is one; None is one row per text.
            has_draft: whether a draft model guesses for a single text. A continuous batch cannot verify guesses.
        """
        if self._continuous_batches.suit(batch) and not (has_draft and batch.is_single):
            self.spare = None
            texts = batch.options.draws * len(batch.requests)
            length = batch.longest if texts > 1 else self._model.shape.n_positions
            with self._continuous_batches.lend(batch, min(rows or texts, texts), length) as captured:
                yield captured
            return
        self._continuous_batches.drop()
        context = self._context(batch)
        try:
            yield context
        finally:
            if isinstance(context, Context) and self._is_reusable(batch):
                self.spare = context

    def _context(self, batch: RequestBatch) -> Context | SlidingRows:
        positions, longest = self._model.shape.n_positions, batch.longest
        keep_hidden = batch.options.decoding == "contrastive"
        if longest > positions:
            return SlidingRows(self._model, keep_hidden)
        if not self._is_reusable(batch):
            return new_context(self._model, longest, keep_hidden)
        # The text may begin like the last one, as in a session: the common prefix is in the spare cache already.
        context, self.spare = self.spare, None
        return new_context(self._model, positions) if context is None else context

    def _is_reusable(self, batch: RequestBatch) -> bool:
        """Whether the cache is kept: only that of a single text, because it has the full context length."""
        return batch.is_single and batch.options.decoding != "contrastive" and has_reusable_context(self._model)
