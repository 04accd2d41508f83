"""Strategies that generate a text token by token: greedy decoding, sampling and contrastive search."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from gpt2tg.decoding import contrastive, lookup, sampling
from gpt2tg.decoding.interface import Finish, Token
from gpt2tg.engine.context import Context
from gpt2tg.engine.continuous_batch import ContinuousBatch, QueuedText
from gpt2tg.engine.sliding import SlidingRows
from gpt2tg.generation import cuda_steps
from gpt2tg.generation.requests import Request, RequestBatch
from gpt2tg.generation.samples import CUT_SHORT, Chunk, Sample


class Draft:
    """A sample that is being generated."""

    def __init__(self, batch: RequestBatch, request: Request, index: int, in_pieces: bool) -> None:
        """
        Args:
            in_pieces: whether its text is wanted while it grows; else it is decoded once, at its end.
        """
        self._in_pieces = in_pieces or bool(batch.options.stop)  # a stop string is cut off as soon as it is found
        self.request = request
        self.index = index
        """The number of the text among those of its prompt."""
        self._seed = batch.options.seed if batch.options.strategy.samples else None
        self._visible = batch.visible_text(request)
        self._ids: list[int] = []
        self._logprob = 0.0

    @property
    def stream(self) -> random.Random:
        """A new stream of the random numbers of this sample."""
        return sampling.stream(self._seed or 0, self.request.index, self.index)

    def add(self, token: Token) -> Chunk | None:
        """Add the next token. Returns the text that it completes, or None if it completes none."""
        piece = ""
        if token.id is not None:
            self._ids.append(token.id)
            self._logprob += token.logprob
            if self._in_pieces:
                piece = self._visible.push(token.id)
        if token.finish_reason:
            if not self._in_pieces:
                self._visible.extend(self._ids)
            piece += self._visible.finish(token.finish_reason in CUT_SHORT)
        elif not piece:
            return None
        return Chunk(self.request.index, self.index, piece, self._sample(token))

    def _sample(self, last: Token) -> Sample | None:
        """Return the finished sample, or None if the last token does not end it."""
        if last.finish_reason is None:
            return None
        return Sample(
            prompt=self.request.prompt,
            completion=self._visible.shown,
            prompt_index=self.request.index,
            index=self.index,
            prompt_tokens=len(self.request.ids),
            ids=tuple(self._ids),
            finish_reason=last.finish_reason,
            logprob=self._logprob,
            seed=self._seed,
            is_unfinished=self._visible.is_unfinished,
        )


def generate_token_by_token(
    batch: RequestBatch, rows: Context | SlidingRows | ContinuousBatch, in_pieces: bool
) -> Iterator[Chunk | None]:
    """Generate the texts of a batch with a strategy other than beam search. Yields after each token what it completes.

    Args:
        in_pieces: whether they are yielded piece by piece; else one chunk has the whole text.
    """
    owners = [owner for owner in range(len(batch.requests)) for _ in range(batch.options.draws)]
    numbers = [number for _ in batch.requests for number in range(batch.options.draws)]
    requests = [batch.requests[owner] for owner in owners]
    drafts = [Draft(batch, request, request.first + n, in_pieces) for request, n in zip(requests, numbers, strict=True)]
    finish = batch.endings(requests)
    if isinstance(rows, ContinuousBatch):
        tokens = cuda_steps.decode_on_gpu(rows, _entries(batch, drafts), finish)
    else:
        tokens = _tokens(batch, rows, owners, drafts, finish)
    for token in tokens:
        yield drafts[token.sample].add(token)


def _entries(batch: RequestBatch, drafts: Sequence[Draft]) -> Iterator[QueuedText]:
    for sample, draft in enumerate(drafts):
        uniform = draft.stream.random if batch.options.strategy.samples else None
        yield QueuedText(sample, draft.request.ids, draft.request.max_new_tokens, uniform)


def _tokens(
    batch: RequestBatch, rows: Context | SlidingRows, owners: Sequence[int], drafts: Sequence[Draft], finish: Finish
) -> Iterator[Token]:
    """Run the decoder that the options ask for. `owners` has the index of each draft's request."""
    options, filters = batch.options, batch.filters.filters
    prompts = [request.ids for request in batch.requests]
    if options.decoding == "contrastive":
        top_k, alpha = options.effective_top_k or 1, options.penalty_alpha
        return contrastive.contrastive_search(rows, prompts, filters, top_k, alpha, finish)
    choose: sampling.Choose = sampling.most_probable
    if options.strategy.samples:
        choose = sampling.Draw([draft.stream for draft in drafts])
    if len(drafts) == 1 and isinstance(rows, Context) and (rows.is_exact or options.prompt_lookup):
        limit = batch.requests[0].max_new_tokens
        return lookup.decode_with_lookup(rows, prompts[0], filters, choose, finish, limit, options.guesses)
    return sampling.decode(rows, prompts, owners, filters, choose, finish)
