"""How probable the model finds a pasted text, and how its strategies compare on a prompt."""

from __future__ import annotations

import asyncio
import importlib
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpt2tg.desk.settings import without_dashes
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import Generator, new_seed
from gpt2tg.generation.samples import Sample, chosen_samples
from gpt2tg.inspection.perplexity import perplexity
from gpt2tg.inspection.tokens import InspectedToken, inspect_parts
from gpt2tg.options import DecodingOptions, ServingOptions
from gpt2tg.options.desk import ComparisonRequest, TextToScore
from gpt2tg.serving.errors import ApiError, from_user_error
from gpt2tg.serving.growing import TokenWriter
from gpt2tg.serving.models import ServedModel
from gpt2tg.serving.page_settings import page_options
from gpt2tg.serving.running import Runner, WaitUntilGone
from gpt2tg.serving.streams import event

# Reports of comparisons that are kept in memory.
MOST_REPORTS = 8


async def score(
    model: ServedModel, wanted: TextToScore, runner: Runner, wait_until_gone: WaitUntilGone
) -> dict[str, Any]:
    """Return the tokens of a text with their probabilities, read after the end-of-text token as in training.

    Raises:
        ApiError: the text is empty, or the server is busy or shuts down.
        GoneError: the client went away.
    """
    if not wanted.text:
        raise ApiError(400, "text is empty: give the text to measure", "text", "invalid_value")
    tokenizer = model.generator.tokenizer
    ids = await asyncio.to_thread(tokenizer.encode, wanted.text)
    parts = inspect_parts(model.generator, tokenizer.encode_prompt(""), ids, wanted.alternatives)
    tokens = await runner.call(parts, wait_until_gone)
    return await asyncio.to_thread(_measured, model, wanted.text, tokens)


def _measured(model: ServedModel, text: str, tokens: Sequence[InspectedToken]) -> dict[str, Any]:
    """Return what is known of a text. A long one takes a while, so this is not for the event loop."""
    tokenizer = model.generator.tokenizer
    nats, writer = -math.fsum(token.logprob for token in tokens), TokenWriter(tokenizer)
    found = perplexity(nats / len(tokens))
    bits = nats / math.log(2) / len(text.encode())
    return {
        "tokens": [writer.inspected(token, not place) for place, token in enumerate(tokens)],
        "perplexity": found if math.isfinite(found) else None,
        "bits_per_byte": bits if math.isfinite(bits) else None,
        "words": len(text.split()),
        "model": model.name,
    }


@dataclass(frozen=True)
class ComparisonToRun:
    """Strategies to compare on a prompt."""

    model: ServedModel
    prompt: str
    strategies: Mapping[str, DecodingOptions]
    warnings: Sequence[str]


class Comparer:
    """Compares strategies, and keeps the last reports."""

    def __init__(self, runner: Runner, limits: ServingOptions) -> None:
        self._runner, self._limits = runner, limits
        self._reports: OrderedDict[str, str] = OrderedDict()

    def report(self, number: str) -> str:
        """Return a report as HTML.

        Raises:
            ApiError: there is none, or it was dropped.
        """
        if number not in self._reports:
            raise ApiError(404, f"the report is gone: the last {MOST_REPORTS} are kept", code="not_found")
        return self._reports[number]

    async def prepare(
        self, model: ServedModel, wanted: ComparisonRequest, settings: Mapping[str, Any]
    ) -> ComparisonToRun:
        """Check a request.

        Raises:
            ApiError: a field is wrong.
        """
        return await asyncio.to_thread(self._prepare, model, wanted, settings)

    def _prepare(self, model: ServedModel, wanted: ComparisonRequest, settings: Mapping[str, Any]) -> ComparisonToRun:
        from gpt2tg.comparison.strategies import parse_strategies

        importlib.import_module("gpt2tg.comparison.report")  # takes a second, in which other requests go on
        warnings: list[str] = []
        shared = {name: value for name, value in settings.items() if name not in ("decoding", "replay")}
        if wanted.max_new_tokens is not None:
            shared = {**shared, "max_length": None, "max_new_tokens": wanted.max_new_tokens}
        base = page_options({**shared, "decoding": "top_p"}, model, wanted.num_sequences).options
        limit = self._limits.max_request_time
        base = replace(base, max_time=min(base.max_time or limit, limit), replay=None)
        base = replace(base, seed=new_seed()) if base.seed is None else base
        try:
            strategies = parse_strategies(base, wanted.strategies, say=warnings.append)
            for options in strategies.values():
                model.generator.fit(wanted.prompt, options)
        except UserError as error:
            raise from_user_error(error, {}) from None
        texts = sum(options.num_beams if options.strategy.beams else options.draws for options in strategies.values())
        if texts > self._limits.max_texts:
            message = f"strategies: {texts} texts are too many: at most {self._limits.max_texts} are allowed"
            raise ApiError(400, message, "strategies", "too_many_texts")
        return ComparisonToRun(model, wanted.prompt, strategies, [without_dashes(line) for line in warnings])

    async def events(self, comparison: ComparisonToRun, gone: WaitUntilGone) -> AsyncGenerator[bytes, None]:
        """Yield the server-sent events of a comparison: how far it is, then the table and the address of the report.

        Raises:
            GoneError: the client went away.
        """
        progress: asyncio.Queue[str] = asyncio.Queue()
        loop, total = asyncio.get_running_loop(), len(comparison.strategies)

        def done(name: str) -> None:
            loop.call_soon_threadsafe(progress.put_nowait, name)

        running = asyncio.ensure_future(self._run(comparison, done, gone))
        waiting: asyncio.Future[str] | None = None
        try:
            yield event(
                {
                    "type": "progress",
                    "done": 0,
                    "total": total,
                    "name": None,
                    "seed": next(iter(comparison.strategies.values())).seed,
                    "warnings": list(comparison.warnings),
                }
            )
            for count in range(1, total + 1):
                waiting = asyncio.ensure_future(progress.get())
                await asyncio.wait({waiting, running}, return_when=asyncio.FIRST_COMPLETED)
                if not waiting.done():
                    break
                yield event({"type": "progress", "done": count, "total": total, "name": waiting.result()})
            yield event({"type": "end", **await running})
        except ApiError as error:
            error.tell()
            yield event({"type": "error", **error.body})
        finally:
            running.cancel()
            if waiting is not None:
                waiting.cancel()

    async def _run(
        self, comparison: ComparisonToRun, done: Callable[[str], None], gone: WaitUntilGone
    ) -> dict[str, Any]:
        """Compare, and return the table and the address of the report."""
        from gpt2tg.comparison.cards import MAX_TEXTS_PER_STRATEGY, CardMaker
        from gpt2tg.comparison.report import report_page
        from gpt2tg.comparison.results import TimedSamples, compare_texts
        from gpt2tg.comparison.table import cell_text, cell_value, used_columns

        generator, strategies = comparison.model.generator, comparison.strategies
        found = await self._runner.call(_generated(comparison, done), gone)
        timed = {name: TimedSamples(samples, seconds) for name, samples, seconds in found}
        compared = await asyncio.to_thread(compare_texts, [comparison.prompt], strategies, timed)

        def page() -> Iterator[list[str]]:
            maker = CardMaker(generator)
            for result in compared.results:
                for sample in result.samples[:MAX_TEXTS_PER_STRATEGY]:
                    maker.inspect(sample)
                    yield []
            yield [report_page(generator, compared, comparison.model.name, maker=maker)]

        (report,) = await self._runner.call(page(), gone)
        number = secrets.token_urlsafe(16)
        self._reports[number] = report
        while len(self._reports) > MOST_REPORTS:
            self._reports.popitem(last=False)
        columns = used_columns(compared)
        rows = [
            {
                "name": result.name,
                "values": {column.name: _finite(cell_value(result, column)) for column in columns},
                "shown": {column.name: cell_text(result, column) for column in columns},
                "texts": [sample.completion for sample in result.samples],
            }
            for result in compared.results
        ]
        headings = [{"name": column.name, "heading": column.heading, "meaning": column.meaning} for column in columns]
        return {"table": {"columns": headings, "rows": rows}, "report": f"/api/reports/{number}"}


def _generated(
    comparison: ComparisonToRun, done: Callable[[str], None]
) -> Iterator[list[tuple[str, tuple[Sample, ...], float]]]:
    """Generate the texts of one strategy after the other, a step at a time, and yield each with the seconds it took."""
    generator: Generator = comparison.model.generator
    for name, options in comparison.strategies.items():
        batch = generator.prepare([generator.fit(comparison.prompt, options)], options)
        samples: list[Sample] = []
        seconds, start = 0.0, time.perf_counter()
        for chunk in generator.steps(batch):
            if chunk is not None and chunk.sample is not None:
                samples.append(chunk.sample)
            seconds += time.perf_counter() - start
            yield []
            start = time.perf_counter()
        done(name)
        yield [(name, tuple(chosen_samples(samples, options)), seconds)]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
