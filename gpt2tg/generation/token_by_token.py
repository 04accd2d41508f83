"""Strategies that generate a text token by token: greedy decoding, sampling and contrastive search."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from gpt2tg.decoding import contrastive, sampling
from gpt2tg.decoding.drafting import Drafter, decode_with_drafts
from gpt2tg.decoding.interface import Finish, Token
from gpt2tg.decoding.lookup import PromptLookup
from gpt2tg.decoding.model_drafter import LookupOrModel, ModelDrafter
from gpt2tg.decoding.pace import Costs
from gpt2tg.engine.context import Context
from gpt2tg.engine.continuous_batch import ContinuousBatch, QueuedText
from gpt2tg.engine.sliding import SlidingRows
from gpt2tg.generation import cuda_steps
from gpt2tg.generation.draft_model import DraftModel
from gpt2tg.generation.requests import Request, RequestBatch
from gpt2tg.generation.samples import CUT_SHORT, Chunk, Sample


class GrowingSample:
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
    batch: RequestBatch,
    rows: Context | SlidingRows | ContinuousBatch,
    in_pieces: bool,
    draft: DraftModel | None = None,
) -> Iterator[Chunk | None]:
    """Generate the texts of a batch with a strategy other than beam search. Yields after each token what it completes.

    Args:
        in_pieces: whether they are yielded piece by piece; else one chunk has the whole text.
        draft: the model that drafts, if there is one.
    """
    owners = [owner for owner in range(len(batch.requests)) for _ in range(batch.options.draws)]
    numbers = [number for _ in batch.requests for number in range(batch.options.draws)]
    requests = [batch.requests[owner] for owner in owners]
    samples = [
        GrowingSample(batch, request, request.first + n, in_pieces)
        for request, n in zip(requests, numbers, strict=True)
    ]
    finish = batch.endings(requests)
    if isinstance(rows, ContinuousBatch):
        tokens = cuda_steps.decode_on_gpu(rows, _entries(batch, samples), finish)
    elif batch.options.decoding == "contrastive":
        tokens = _contrastive(batch, rows, finish)
    else:
        tokens = _tokens(batch, rows, owners, samples, finish, draft)
    for token in tokens:
        yield samples[token.sample].add(token)


def _entries(batch: RequestBatch, samples: Sequence[GrowingSample]) -> Iterator[QueuedText]:
    for number, sample in enumerate(samples):
        uniform = sample.stream.random if batch.options.strategy.samples else None
        yield QueuedText(number, sample.request.ids, sample.request.max_new_tokens, uniform)


def _contrastive(batch: RequestBatch, rows: Context | SlidingRows, finish: Finish) -> Iterator[Token]:
    options, prompts = batch.options, [request.ids for request in batch.requests]
    top_k, alpha = options.effective_top_k or 1, options.penalty_alpha
    return contrastive.contrastive_search(rows, prompts, batch.filters.filters, top_k, alpha, finish)


def _tokens(
    batch: RequestBatch,
    rows: Context | SlidingRows,
    owners: Sequence[int],
    samples: Sequence[GrowingSample],
    finish: Finish,
    draft: DraftModel | None,
) -> Iterator[Token]:
    """Run the loop of greedy decoding and sampling, with drafts if there are any. `owners` has the index of each
    sample's request."""
    filters, prompts = batch.filters.filters, [request.ids for request in batch.requests]
    choose: sampling.Choose = sampling.most_probable
    ahead: sampling.ChooseAhead = sampling.most_probable_ahead
    if batch.options.strategy.samples:
        choose = draw = sampling.Draw([sample.stream for sample in samples])
        ahead = draw.ahead
    if not isinstance(rows, Context) or not (rows.is_exact or len(samples) == 1):
        yield from sampling.decode(rows, prompts, owners, filters, choose, finish)
        return
    with ExitStack() as lent:
        pace = draft.pace_in(rows) if draft else None
        lookup = _lookup(batch, rows, owners, pace.costs if pace else Costs(is_measured=rows.is_exact))
        drafter: Drafter | None = lookup
        if draft and pace:
            cache = lent.enter_context(draft.lend(len(samples), batch.longest))
            model = ModelDrafter(cache, cache.capacity, prompts, owners, filters, ahead, pace)
            drafter = LookupOrModel(lookup, model) if lookup else model
        if drafter:
            limits = [sample.request.max_new_tokens for sample in samples]
            yield from decode_with_drafts(rows, prompts, owners, filters, choose, finish, limits, drafter)
        else:
            yield from sampling.decode(rows, prompts, owners, filters, choose, finish)


def _lookup(batch: RequestBatch, rows: Context, owners: Sequence[int], costs: Costs) -> PromptLookup | None:
    """Return prompt lookup for these rows, if it is on. Unless the user asks for it, it is for a single text, in a
    context where no guess can change the text."""
    is_on = batch.options.prompt_lookup is not None or (rows.is_exact and len(owners) == 1)
    if not is_on or not batch.options.guesses:
        return None
    return PromptLookup([batch.requests[owner].ids for owner in owners], batch.options.guesses, costs)
