"""Strategies that search with beams: beam search, diverse beam search and beam sampling."""

from __future__ import annotations

from collections.abc import Iterator

from gpt2tg.decoding import beam, sampling
from gpt2tg.engine.context import Context
from gpt2tg.engine.sliding import SlidingRows
from gpt2tg.generation.requests import Request, RequestBatch
from gpt2tg.generation.samples import CUT_SHORT, Chunk, Sample


def generate_with_beams(batch: RequestBatch, rows: Context | SlidingRows, in_pieces: bool) -> Iterator[Chunk | None]:
    """Search the texts of a batch, and yield the results. Yields None after a step without any.

    Args:
        in_pieces: whether what is certain, the common beginning of all beams, is yielded before.
    """
    visible = [batch.visible_text(request) for request in batch.requests]
    for position, search in _searches(batch, rows):
        request, best = batch.requests[position], visible[position]
        if not search.is_over:
            certain = search.agreed[best.count :] if in_pieces else ()
            piece = "".join(best.push(token) for token in certain)
            yield Chunk(request.index, request.first, piece) if piece else None
            continue
        for rank, text in list(enumerate(search.finished))[request.first :][: batch.options.sequences]:
            sample = _sample(batch, request, rank, text)
            shown = len(best.shown) if rank == request.first else 0
            yield Chunk(request.index, rank, sample.completion[shown:], sample)


def _searches(batch: RequestBatch, rows: Context | SlidingRows) -> Iterator[tuple[int, beam.Search]]:
    """Run beam search with the settings of the options."""
    options = batch.options
    settings = beam.BeamSettings(
        num_beams=options.num_beams,
        end_tokens=len(batch.end_ids),
        early_stopping=options.early_stopping,
        length_penalty=options.length_penalty,
        groups=options.groups,
        diversity_penalty=options.diversity_penalty,
    )
    return beam.beam_search(
        rows,
        [request.ids for request in batch.requests],
        [request.max_new_tokens for request in batch.requests],
        batch.filters.filters,
        settings,
        [_proposer(batch, request) for request in batch.requests],
        batch.endings(batch.requests),
    )


def _proposer(batch: RequestBatch, request: Request) -> beam.Propose:
    """Return how continuations are picked: at random, or the best ones."""
    if batch.options.strategy.samples:
        return beam.DrawWithoutReplacement(sampling.stream(batch.options.seed or 0, request.index, 0))
    return beam.best


def _sample(batch: RequestBatch, request: Request, rank: int, text: beam.Hypothesis) -> Sample:
    visible = batch.visible_text(request)
    if batch.options.stop:
        for token in text.ids:
            visible.push(token)
    else:
        visible.extend(text.ids)
    visible.finish(text.finish_reason in CUT_SHORT)
    return Sample(
        prompt=request.prompt,
        completion=visible.shown,
        prompt_index=request.index,
        index=rank,
        prompt_tokens=len(request.ids),
        ids=text.ids,
        finish_reason=text.finish_reason or "length",
        logprob=text.logprob,
        seed=batch.options.seed if batch.options.strategy.samples else None,
        ranking_score=text.ranking_score,
        is_unfinished=visible.is_unfinished,
    )
