"""What the server answers the page to write on, under /api."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from gpt2tg import __version__
from gpt2tg.desk.files import read_file
from gpt2tg.desk.settings import describe, describe_strategies, presets, settings_on_the_page
from gpt2tg.errors import UserError, one_line
from gpt2tg.options import ServingOptions
from gpt2tg.options.desk import (
    LONGEST_TITLE,
    Choice,
    ComparisonRequest,
    Continuation,
    Edit,
    ModelSwitch,
    NewText,
    NodeChange,
    TextChange,
    TextToScore,
)
from gpt2tg.serving.bodies import OptionsT, read_body, read_fields
from gpt2tg.serving.desk_answers import entry_json, grown_json, text_json, whole_nodes
from gpt2tg.serving.desk_thread import DeskThread
from gpt2tg.serving.errors import ApiError
from gpt2tg.serving.measuring import Comparer, score
from gpt2tg.serving.metrics import Metrics
from gpt2tg.serving.models import Models, OtherModels
from gpt2tg.serving.page_files import PRIVATE, REPORT, page_routes
from gpt2tg.serving.page_settings import check_settings, page_defaults
from gpt2tg.serving.running import CLIENT_GONE, GoneError, Runner
from gpt2tg.serving.streams import streamed, until_gone
from gpt2tg.serving.text_files import FORMATS, Author, export, fingerprint
from gpt2tg.serving.writing import Writer

# Bytes of a file to open. A tree with all its tokens is much longer than its text.
LARGEST_FILE = 20_000_000


@dataclass(frozen=True)
class Page:
    """What the page needs beside the model."""

    thread: DeskThread
    others: OtherModels | None = None


def desk_routes(
    page: Page, models: Models, runner: Runner, options: ServingOptions, metrics: Metrics
) -> list[BaseRoute]:
    """Return the routes of the page, and of all that it asks for."""
    paths = DeskPaths(page.thread, models, runner, options, metrics)
    text, node = "/api/texts/{text:int}", "/api/texts/{text:int}/nodes/{node:int}"
    return [
        *page_routes(),
        Route("/api/state", paths.state),
        Route("/api/model", paths.switch_model, methods=["POST"]),
        Route("/api/import", paths.import_file, methods=["POST"]),
        Route("/api/score", paths.score, methods=["POST"]),
        Route("/api/compare", paths.compare, methods=["POST"]),
        Route("/api/reports/{report}", paths.report),
        Route("/api/texts", paths.texts),
        Route("/api/texts", paths.new_text, methods=["POST"]),
        Route(text, paths.text),
        Route(text, paths.change_text, methods=["PATCH"]),
        Route(text, paths.delete, methods=["DELETE"]),
        Route(f"{text}/restore", paths.restore, methods=["POST"]),
        Route(f"{text}/edit", paths.edit, methods=["POST"]),
        Route(f"{text}/choose", paths.choose, methods=["POST"]),
        Route(f"{text}/continue", paths.continue_text, methods=["POST"]),
        Route(f"{text}/export", paths.export),
        Route(node, paths.node),
        Route(node, paths.change_node, methods=["PATCH"]),
    ]


class DeskPaths:
    """The answers of the desk."""

    def __init__(
        self, desk: DeskThread, models: Models, runner: Runner, options: ServingOptions, metrics: Metrics
    ) -> None:
        self._thread, self._desk, self._models = desk, desk.desk, models
        self._options, self._metrics = options, metrics
        self._runner, self._writer, self._comparer = runner, Writer(desk, runner, options), Comparer(runner, options)

    async def _fields(self, options: type[OptionsT], request: Request) -> tuple[OptionsT, dict[str, Any] | None]:
        return read_fields(options, await read_body(request, self._options.max_body))

    async def state(self, request: Request) -> Response:
        """Answer `GET /api/state`."""
        model = self._models.current
        found = {
            "model": model.name,
            "models": await self._models.listed(),
            "version": __version__,
            "presets": [vars(preset) for preset in presets(model.tuned)],
            "settings": [describe(field) for field in settings_on_the_page()],
            "strategies": describe_strategies(),
            "defaults": page_defaults(model),
            "positions": model.generator.model.shape.n_positions,
            "texts": await self._entries(),
        }
        return _answer(found)

    async def switch_model(self, request: Request) -> Response:
        """Answer `POST /api/model` when the model is loaded, with the new state."""
        switch, _ = await self._fields(ModelSwitch, request)
        await self._models.switch(switch.name)
        return await self.state(request)

    async def _entries(self) -> list[dict[str, Any]]:
        return [entry_json(entry) for entry in await self._thread.run(self._desk.store.entries)]

    async def texts(self, request: Request) -> Response:
        """Answer `GET /api/texts`."""
        return _answer(await self._entries())

    async def new_text(self, request: Request) -> Response:
        """Answer `POST /api/texts`."""
        new, settings = await self._fields(NewText, request)
        known = check_settings(settings or {}, self._models.current)
        text = await self._thread.run(self._desk.new_text, _title(new.title), new.text, known)
        return await self._whole(text, 201)

    async def _whole(self, text: int, status: int = 200, **more: Any) -> Response:
        self._writer.save(text)
        model = self._models.current.name

        def read() -> Response:  # in the thread of the texts, since a long one has megabytes of tokens
            return _answer(text_json(self._desk.view(text), model) | more, status)

        return await self._thread.run(read)

    async def text(self, request: Request) -> Response:
        """Answer `GET /api/texts/ID`."""
        return await self._whole(_number(request, "text"))

    async def change_text(self, request: Request) -> Response:
        """Answer `PATCH /api/texts/ID`."""
        text = _number(request, "text")
        change, settings = await self._fields(TextChange, request)
        changes = {name: value for name, value in vars(change).items() if value is not None}
        if "title" in changes:
            changes["title"] = _title(changes["title"])
        if settings is not None:
            changes["settings"] = check_settings(settings, self._models.current)
        self._writer.save(text)
        await self._thread.run(self._desk.change_text, text, **changes)
        return await self._whole(text)

    async def delete(self, request: Request) -> Response:
        """Answer `DELETE /api/texts/ID`."""
        await self._thread.run(self._desk.delete, _number(request, "text"))
        return Response(status_code=204, headers=PRIVATE)

    async def restore(self, request: Request) -> Response:
        """Answer `POST /api/texts/ID/restore`."""
        text = _number(request, "text")
        await self._thread.run(self._desk.restore, text)
        return await self._whole(text)

    async def edit(self, request: Request) -> Response:
        """Answer `POST /api/texts/ID/edit`."""
        text = _number(request, "text")
        edit, _ = await self._fields(Edit, request)
        self._writer.save(text)
        grown = await self._thread.run(self._desk.edit, text, edit.node, edit.text, edit.version)
        return _answer(grown_json(grown))

    async def choose(self, request: Request) -> Response:
        """Answer `POST /api/texts/ID/choose`."""
        text = _number(request, "text")
        choice, _ = await self._fields(Choice, request)
        self._writer.save(text)
        chosen = choice.node, choice.token, choice.alternative
        return _answer(grown_json(await self._thread.run(self._desk.choose, text, *chosen)))

    async def continue_text(self, request: Request) -> Response:
        """Answer `POST /api/texts/ID/continue` with server-sent events."""
        text = _number(request, "text")
        wanted, settings = await self._fields(Continuation, request)
        continued = await self._writer.prepare(self._models.current, text, wanted, settings or {})
        return await streamed(self._writer.events(continued, until_gone(request)), self._metrics)

    async def export(self, request: Request) -> Response:
        """Answer `GET /api/texts/ID/export`."""
        text, form = _number(request, "text"), request.query_params.get("format", "txt")
        if form not in FORMATS:
            raise ApiError(400, f"format is not valid: give one of {', '.join(FORMATS)}", "format", "invalid_value")
        node = request.query_params.get("node")
        if node is not None and not re.fullmatch("[0-9]{1,30}", node):
            raise ApiError(400, "node is not valid: give the number of a node", "node", "invalid_value")
        self._writer.save(text)
        end = None if node is None else _known("node", int(node))
        return await self._thread.run(export, self._desk, text, end, form, self._models.current)

    async def import_file(self, request: Request) -> Response:
        """Answer `POST /api/import`."""
        content = await read_body(request, max(self._options.max_body, LARGEST_FILE))
        name = one_line(request.query_params.get("name", "")) or "text.txt"
        model = self._models.current
        author = Author(model, await asyncio.to_thread(fingerprint, model))
        try:
            imported = await asyncio.to_thread(read_file, content, name, author)
        except UserError as error:
            raise ApiError(400, str(error), code="invalid_file") from None
        text = await self._thread.run(self._desk.add_imported, imported)
        return await self._whole(text, 201, warnings=list(imported.warnings))

    async def score(self, request: Request) -> Response:
        """Answer `POST /api/score`."""
        wanted, _ = await self._fields(TextToScore, request)
        try:
            found = await score(self._models.current, wanted, self._runner, until_gone(request))
            return await asyncio.to_thread(_answer, found)
        except GoneError:
            self._metrics.gone.inc()
            return Response(status_code=CLIENT_GONE)

    async def compare(self, request: Request) -> Response:
        """Answer `POST /api/compare` with server-sent events."""
        wanted, settings = await self._fields(ComparisonRequest, request)
        comparison = await self._comparer.prepare(self._models.current, wanted, settings or {})
        return await streamed(self._comparer.events(comparison, until_gone(request)), self._metrics)

    async def report(self, request: Request) -> Response:
        """Answer `GET /api/reports/ID`."""
        return HTMLResponse(self._comparer.report(request.path_params["report"]), headers=REPORT)

    async def node(self, request: Request) -> Response:
        """Answer `GET /api/texts/ID/nodes/NODE`."""
        text, node = _number(request, "text"), _number(request, "node")
        self._writer.save(text)
        return _answer(whole_nodes([await self._thread.run(self._desk.node, text, node)])[0])

    async def change_node(self, request: Request) -> Response:
        """Answer `PATCH /api/texts/ID/nodes/NODE`."""
        text, node = _number(request, "text"), _number(request, "node")
        change, _ = await self._fields(NodeChange, request)
        changes: dict[str, Any] = {}
        if change.name is not None:
            changes["name"] = _title(change.name, "name") or None
        if change.pruned is not None:
            changes["is_pruned"] = change.pruned
        return _answer(grown_json(await self._thread.run(self._desk.change_node, text, node, **changes)))


def _answer(value: Any, status: int = 200) -> JSONResponse:
    return JSONResponse(value, status, PRIVATE)


def _number(request: Request, name: str) -> int:
    """Return a number of the path.

    Raises:
        ApiError: no text or node can have it.
    """
    return _known(name, request.path_params[name])


def _known(name: str, number: int) -> int:
    if number >= 2**63:
        raise ApiError(404, f"there is no {name} {number}", code="not_found")
    return number


def _title(title: str, name: str = "title") -> str:
    """Return a title in one line.

    Raises:
        ApiError: it is too long.
    """
    if len(title) > LONGEST_TITLE:
        message = f"{name} has {len(title):,} characters: give at most {LONGEST_TITLE}"
        raise ApiError(400, message, name, "invalid_value")
    return " ".join(title.split())
