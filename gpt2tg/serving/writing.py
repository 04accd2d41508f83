"""Continue texts of the desk: the nodes grow in the database while their pieces are sent."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from gpt2tg.batch.prompts import trailing_spaces
from gpt2tg.desk.tree import Node
from gpt2tg.errors import UserError
from gpt2tg.generation.requests import RequestBatch
from gpt2tg.inspection.tokens import inspect_parts
from gpt2tg.options import DecodingOptions, ServingOptions
from gpt2tg.options.desk import Continuation
from gpt2tg.serving.desk_answers import whole_nodes
from gpt2tg.serving.desk_thread import DeskThread
from gpt2tg.serving.errors import ApiError, from_user_error
from gpt2tg.serving.growing import INTERRUPTED, GrowingNode, Tokens, TokenWriter
from gpt2tg.serving.jobs import Progress, is_live
from gpt2tg.serving.models import ServedModel
from gpt2tg.serving.page_settings import page_options
from gpt2tg.serving.running import Run, Runner, WaitUntilGone
from gpt2tg.serving.streams import event

# Seconds between two times that growing texts are saved.
SAVING_TIME = 0.5


@dataclass(frozen=True)
class Continued:
    """A text to continue."""

    text: int
    node: int
    model: ServedModel
    batch: RequestBatch
    settings: Sequence[Mapping[str, Any]]
    """Of each node that is to be generated."""
    alternatives: int
    warnings: Sequence[str]

    @property
    def is_live(self) -> bool:
        """Whether its tokens are measured while they are generated."""
        return is_live(self.model.generator, self.batch)


class Writer:
    """Continues the texts of a desk."""

    def __init__(self, desk: DeskThread, runner: Runner, limits: ServingOptions) -> None:
        self._desk, self._runner, self._limits = desk, runner, limits
        self._growing: dict[int, list[Sequence[GrowingNode]]] = {}  # by text

    async def prepare(
        self, model: ServedModel, text: int, wanted: Continuation, settings: Mapping[str, Any]
    ) -> Continued:
        """Check a request, and fit the text into the context window of the model.

        Raises:
            ApiError: a field is wrong, or there is no such text or node.
        """
        self.save(text)
        prompt = await self._desk.run(self._desk.desk.prompt, text, wanted.node)
        return await asyncio.to_thread(self._prepare, model, text, wanted, settings, prompt)

    def _prepare(
        self, model: ServedModel, text: int, wanted: Continuation, settings: Mapping[str, Any], prompt: str
    ) -> Continued:
        found = page_options(settings, model, wanted.count)
        options, limit = found.options, self._limits.max_request_time
        rows = options.num_beams if options.strategy.beams else options.draws
        if rows > self._limits.max_texts:
            name = "num_beams" if options.strategy.beams else "count"
            message = f"{name}: {rows} texts at a time are too many: at most {self._limits.max_texts} are allowed"
            raise ApiError(400, message, name, "too_many_texts")
        try:
            limited = replace(options, max_time=min(options.max_time or limit, limit))
            request = model.generator.fit(prompt, limited)
            batch = model.generator.prepare([request], limited)
        except UserError as error:
            raise from_user_error(error, {}) from None
        warnings = [*found.warnings, *([line] if (line := trailing_spaces([prompt])) else [])]
        if request.dropped:
            positions = model.generator.model.shape.n_positions
            read = f"the first {request.dropped:,} of its tokens are not read"
            warnings = [*warnings, f"the text is longer than the {positions:,} tokens of the model's context: {read}"]
        kept = options if options.replay else replace(options, seed=batch.options.seed)
        all_settings = [_settings(kept, model.name, number) for number in range(options.sequences)]
        return Continued(text, wanted.node, model, batch, all_settings, wanted.alternatives, warnings)

    async def events(self, continued: Continued, gone: WaitUntilGone) -> AsyncGenerator[bytes, None]:
        """Yield the server-sent events of a text that is continued. What was written stays, however it ends.

        Raises:
            ApiError: before the first event: the server is busy, shuts down, or has no such node any more.
            GoneError: the client went away.
        """
        batch, text = continued.batch, continued.text
        run = self._runner.start(continued.model.generator, batch, True, continued.alternatives)
        nodes: list[GrowingNode] = []
        is_ended = False
        try:
            numbers = await self._begin(continued)
            writer = TokenWriter(batch.tokenizer)
            nodes += [GrowingNode(node, batch.requests[0], batch.tokenizer, writer) for node in numbers]
            yield event(
                {
                    "type": "begin",
                    "nodes": numbers,
                    "node_list": whole_nodes(await self._nodes(text, numbers)),
                    "seed": batch.options.seed if batch.options.strategy.samples else None,
                    "warnings": list(continued.warnings),
                }
            )
            async with self._saving(text, nodes):
                async for piece in self._pieces(run, continued, nodes, gone):
                    yield piece
            last = await self._end(continued, nodes)
            is_ended = True
            yield last
        except ApiError as error:
            if not nodes:
                raise
            error.tell()
            yield event({"type": "error", **error.body})
        finally:  # no waiting here: the client may be gone, and this request cancelled
            run.cancel()
            if nodes and not is_ended:
                self._desk.post(self._grow, nodes)
                self._desk.post(self._desk.desk.finish, text, {node.node: node.end for node in nodes})

    async def _begin(self, continued: Continued) -> list[int]:
        """Add the nodes. If the request is cancelled meanwhile, they are interrupted as soon as they are there."""
        desk = self._desk.desk
        begin = asyncio.ensure_future(self._desk.run(desk.begin, continued.text, continued.node, continued.settings))

        def interrupt(begun: asyncio.Future[list[int]]) -> None:
            if not begun.cancelled() and begun.exception() is None:
                self._desk.post(desk.finish, continued.text, dict.fromkeys(begun.result(), INTERRUPTED))

        try:
            return await asyncio.shield(begin)
        except asyncio.CancelledError:
            begin.add_done_callback(interrupt)
            raise

    async def _pieces(
        self, run: Run, continued: Continued, nodes: Sequence[GrowingNode], gone: WaitUntilGone
    ) -> AsyncIterator[bytes]:
        """Yield the events of all pieces that have arrived at a time: one for each text that has grown."""
        request = continued.batch.requests[0]
        async for bundle in run.reports(gone):
            grown: dict[int, tuple[str, Tokens]] = {}
            for report in bundle:
                if isinstance(report, Progress):
                    index = report.number - request.first
                    piece, tokens = nodes[index].add(report)
                    before = grown.get(index, ("", []))
                    grown[index] = before[0] + piece, before[1] + tokens
            if grown:
                yield b"".join(
                    event({"type": "piece", "index": index, "text": piece, "tokens": tokens})
                    for index, (piece, tokens) in grown.items()
                )
        if continued.alternatives and not continued.is_live:
            for node in nodes:
                if node.sample is not None:
                    parts = inspect_parts(
                        continued.model.generator, request.ids, node.sample.ids, continued.alternatives
                    )
                    node.add_inspected(await self._runner.call(parts, gone))

    @asynccontextmanager
    async def _saving(self, text: int, nodes: Sequence[GrowingNode]) -> AsyncIterator[None]:
        """Save what nodes have grown by, again and again, and at the end of the block."""
        self._growing.setdefault(text, []).append(nodes)
        saver = asyncio.create_task(self._keep_saving(text))
        try:
            yield
        finally:
            saver.cancel()
            self.save(text)
            self._growing[text].remove(nodes)
            if not self._growing[text]:
                del self._growing[text]

    async def _keep_saving(self, text: int) -> None:
        while True:
            await asyncio.sleep(SAVING_TIME)
            self.save(text)

    def save(self, text: int) -> None:
        """Save what the growing nodes of a text have grown by, before anything else reads or changes the text."""
        if nodes := [node for nodes in self._growing.get(text, ()) for node in nodes]:
            self._desk.post(self._grow, nodes)

    def _grow(self, nodes: Sequence[GrowingNode]) -> None:
        """Save what nodes have grown by, in the thread of the desk.

        If that fails, it is saved with what comes next: no text gets a hole.
        """
        unsaved = {node: found for node in nodes if (found := node.unsaved())}
        if unsaved:
            self._desk.desk.grow(
                {
                    node.node: ("".join(piece for piece, _ in found), [token for _, part in found for token in part])
                    for node, found in unsaved.items()
                }
            )
        for node, found in unsaved.items():
            node.note_saved(len(found))

    async def _end(self, continued: Continued, nodes: Sequence[GrowingNode]) -> bytes:
        """Save the rest, note how the nodes have ended, and return the last event."""
        await self._desk.run(self._grow, nodes)
        await self._desk.run(self._desk.desk.finish, continued.text, {node.node: node.end for node in nodes})
        found = await self._nodes(continued.text, [node.node for node in nodes])
        stored = await self._desk.run(self._desk.desk.store.text, continued.text)
        return event({"type": "end", "nodes": whole_nodes(found), "changed": stored.entry.changed})

    async def _nodes(self, text: int, numbers: Sequence[int]) -> list[Node]:
        return [await self._desk.run(self._desk.desk.node, text, number) for number in numbers]


def _settings(options: DecodingOptions, model: str, candidate: int) -> dict[str, Any]:
    """Return what a node remembers of how it was generated."""
    return {**dataclasses.asdict(options), "model": model, "candidate": candidate}
