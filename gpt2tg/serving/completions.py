"""From a request to `/v1/completions` to its answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from gpt2tg.errors import UserError, one_line
from gpt2tg.generation.footprint import check_footprint
from gpt2tg.generation.generator import Generator
from gpt2tg.generation.requests import Request, RequestBatch, fit_prompt
from gpt2tg.generation.samples import Sample, chosen_samples
from gpt2tg.inspection.tokens import InspectedToken, inspect_parts
from gpt2tg.options import ServingOptions
from gpt2tg.serving.answers import Answer, TokenTable, choice, usage
from gpt2tg.serving.completion_request import CompletionRequest, Prompt, read_request
from gpt2tg.serving.errors import ApiError, from_user_error
from gpt2tg.serving.jobs import Finished, Progress, ScoredToken
from gpt2tg.serving.models import ServedModel
from gpt2tg.serving.running import Run, Runner, WaitUntilGone
from gpt2tg.serving.streams import event


@dataclass(frozen=True)
class Prepared:
    """A request whose prompts fit the model."""

    request: CompletionRequest
    batch: RequestBatch
    texts: Sequence[str]
    """The prompts as text."""
    answer: Answer


class Completions:
    """Answers requests with the texts of one model."""

    def __init__(self, model: ServedModel, limits: ServingOptions, runner: Runner) -> None:
        self.model, self._defaults = model.name, model.defaults
        self._generator, self._limits, self._runner = model.generator, limits, runner

    async def prepare(self, body: bytes) -> Prepared:
        """Check a request. Tokenizing may take a while, so it runs in another thread.

        Raises:
            ApiError: the request is refused.
        """
        return await asyncio.to_thread(self._prepare, body)

    def _prepare(self, body: bytes) -> Prepared:
        request = read_request(body, self._defaults)
        if request.api.model not in (None, self.model):
            message = f"the model {one_line(request.api.model or '', 100)} does not exist: this server has {self.model}"
            raise ApiError(404, message, "model", "model_not_found")
        self._check_size(request)
        self._check_ids(request.logit_bias, "logit_bias")
        limit = self._limits.max_request_time
        options = replace(request.options, max_time=min(request.options.max_time or limit, limit))
        try:
            fitted = [self._fit(prompt, options, index) for index, prompt in enumerate(request.prompts)]
            batch = self._generator.prepare(fitted, options, request.logit_bias)
        except UserError as error:
            raise from_user_error(error, request.names) from None
        texts = [request.prompt for request in fitted]
        return Prepared(request, batch, texts, Answer(self.model, batch, request.warnings))

    def _check_size(self, request: CompletionRequest) -> None:
        options, prompts = request.options, len(request.prompts)
        if prompts > 1 and options.replay is not None:
            raise ApiError(400, "replay generates one text: give one prompt", "replay")
        each = options.num_beams if options.strategy.beams else options.draws
        if prompts * each > self._limits.max_texts:
            option = "num_beams" if options.strategy.beams else "best_of" if options.best_of else "num_sequences"
            param = "prompt" if prompts > each else request.names.get(option, option)
            message = f"{prompts * each} texts at a time are too many: at most {self._limits.max_texts} are allowed"
            raise ApiError(400, f"{param}: {message}", param, "too_many_texts")

    def _check_ids(self, ids: Sequence[int] | Mapping[int, float], param: str) -> None:
        size, unused = self._generator.model.shape.vocab_size, self._generator.unused
        for token in ids:
            if not 0 <= token < size or (unused is not None and unused[token]):
                raise ApiError(400, f"{param}: {token} is no token of the model", param, "invalid_value")

    def _fit(self, prompt: Prompt, options: Any, index: int) -> Request:
        if isinstance(prompt, str):
            return self._generator.fit(prompt, options, index)
        self._check_ids(prompt, "prompt")
        text, model = self._generator.tokenizer.decode(prompt), self._generator.model
        request = fit_prompt(text, prompt, options, model.shape.n_positions, index)
        check_footprint(model, options, 1, request.max_new_tokens)
        return request

    async def answer(self, prepared: Prepared, wait_until_gone: WaitUntilGone) -> dict[str, Any]:
        """Return the answer to a request without `stream`.

        Args:
            wait_until_gone: returns when the client has gone away.

        Raises:
            ApiError: the server is busy, shuts down, or failed.
            GoneError: the client went away.
        """
        request, batch = prepared.request, prepared.batch
        samples: list[dict[int, Sample]] = [{} for _ in batch.requests]
        tokens: dict[tuple[int, int], list[ScoredToken]] = {}
        shared = 0
        if not request.is_prompt_only:
            async for bundle in self._start(prepared, in_pieces=False).reports(wait_until_gone):
                for report in bundle:
                    if isinstance(report, Finished):
                        shared = report.shared
                        continue
                    tokens.setdefault((report.position, report.number), []).extend(report.tokens)
                    if report.sample is not None:
                        samples[report.position][report.number] = report.sample
        choices: list[dict[str, Any]] = []
        for position, found in enumerate(samples):
            chosen: Sequence[Sample | None] = chosen_samples(found.values(), batch.options) or [None]
            for sample in chosen:
                known = () if sample is None else tokens[position, sample.index]
                choices.append(await self._choice(prepared, position, sample, known, len(choices), wait_until_gone))
        return prepared.answer.whole(choices, usage(batch, [s for found in samples for s in found.values()], shared))

    async def _choice(
        self,
        prepared: Prepared,
        position: int,
        sample: Sample | None,
        known: Sequence[ScoredToken],
        index: int,
        wait_until_gone: WaitUntilGone,
    ) -> dict[str, Any]:
        """Return a text as the answer has it; without a sample, the prompt alone.

        Args:
            known: its tokens, if they were scored while it was generated.
        """
        api, request = prepared.request.api, prepared.batch.requests[position]
        prompt = prepared.texts[position] if api.echo else ""
        text = prompt + (sample.completion if sample else "")
        reason = sample.finish_reason if sample else "length"
        if api.logprobs is None:
            return choice(index, text, reason, None)
        scored = partial(self._scored, alternatives=api.logprobs, wait_until_gone=wait_until_gone)
        table = TokenTable(self._generator.tokenizer, () if prompt else request.ids, 0)
        if prompt:
            first = ScoredToken(request.ids[0], 0.0, ())
            table.add([first, *await scored(request.ids[:1], request.ids[1:])], True)
        if sample:
            table.add(known or await scored(request.ids, sample.ids))
        return choice(index, text, reason, table.take(len(text)))

    async def _scored(
        self, context: Sequence[int], ids: Sequence[int], alternatives: int, wait_until_gone: WaitUntilGone
    ) -> list[ScoredToken]:
        """Return tokens with their log-probabilities, computed anew."""
        parts = inspect_parts(self._generator, context, ids, alternatives)
        return [_scored_token(token) for token in await self._runner.call(parts, wait_until_gone)]

    async def events(self, prepared: Prepared, wait_until_gone: WaitUntilGone) -> AsyncGenerator[bytes, None]:
        """Yield the server-sent events of a request with `stream`; an error after the first one is an event too.

        Raises:
            ApiError: before the first event: the server is busy or shuts down.
            GoneError: the client went away.
        """
        stream = Stream(prepared, self._generator)
        is_begun = False
        try:
            async for bundle in self._start(prepared, in_pieces=True).reports(wait_until_gone):
                yield stream.events(bundle)
                is_begun = True
        except ApiError as error:
            if not is_begun:
                raise
            error.tell()
            yield event(error.body)

    def _start(self, prepared: Prepared, in_pieces: bool) -> Run:
        return self._runner.start(self._generator, prepared.batch, in_pieces, prepared.request.api.logprobs)


class Stream:
    """The events of one streamed answer."""

    def __init__(self, prepared: Prepared, generator: Generator) -> None:
        self._prepared, self._tokenizer = prepared, generator.tokenizer
        self._tables: dict[int, TokenTable] = {}  # by choice
        self._samples: list[Sample] = []

    def events(self, bundle: Sequence[Progress | Finished]) -> bytes:
        """Return the events of some reports: one for each text that has grown, and the end."""
        grown: dict[tuple[int, int], list[Progress]] = {}
        for report in bundle:
            if isinstance(report, Progress):
                grown.setdefault((report.position, report.number), []).append(report)
        events = [event(self._piece(reports)) for reports in grown.values()]
        if isinstance(end := bundle[-1], Finished):
            if self._prepared.request.include_usage:
                numbers = usage(self._prepared.batch, self._samples, end.shared)
                events.append(event(self._prepared.answer.last(numbers)))
            events.append(b"data: [DONE]\n\n")
        return b"".join(events)

    def _piece(self, reports: Sequence[Progress]) -> dict[str, Any]:
        """Return the event of what one text has grown by."""
        prepared, position, sample = self._prepared, reports[0].position, reports[-1].sample
        request, api = prepared.batch.requests[position], prepared.request.api
        index = position * prepared.batch.options.sequences + reports[0].number - request.first
        prompt = prepared.texts[position] if api.echo else ""
        is_first = index not in self._tables
        table = self._tables.setdefault(index, TokenTable(self._tokenizer, request.ids, len(prompt)))
        piece = (prompt if is_first else "") + "".join(report.piece for report in reports)
        logprobs = None
        if api.logprobs is not None:
            table.add([token for report in reports for token in report.tokens])
            logprobs = table.take(len(prompt) + len(sample.completion) if sample else None)
        if sample is not None:
            self._samples.append(sample)
        reason = sample.finish_reason if sample else None
        return prepared.answer.piece(choice(index, piece, reason, logprobs), prepared.request.include_usage)


def _scored_token(token: InspectedToken) -> ScoredToken:
    pairs = [(other.id, math.log(other.probability)) for other in token.alternatives if other.probability > 0]
    return ScoredToken(token.id, token.logprob, tuple(pairs))
