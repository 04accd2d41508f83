"""The paths of the server, as an ASGI application."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from gpt2tg.options import ServingOptions
from gpt2tg.serving.bodies import read_body
from gpt2tg.serving.completions import Completions
from gpt2tg.serving.desk_paths import Page, desk_routes
from gpt2tg.serving.errors import ApiError
from gpt2tg.serving.guards import HEALTH, Guards
from gpt2tg.serving.metrics import Metrics
from gpt2tg.serving.models import Models, ServedModel
from gpt2tg.serving.openapi import description
from gpt2tg.serving.page_files import OPEN_PATHS
from gpt2tg.serving.running import CLIENT_GONE, GoneError, Runner
from gpt2tg.serving.scheduler import Scheduler
from gpt2tg.serving.streams import streamed, until_gone


def _nothing() -> None:
    """Close no texts, where there is no page."""


@dataclass(frozen=True)
class Service:
    """The application, and the thread that computes for it."""

    app: Starlette
    scheduler: Scheduler
    close: Callable[[], None] = _nothing
    """Saves and closes the texts of the page; call it when the scheduler has stopped."""


def new_service(model: ServedModel, options: ServingOptions, page: Page | None = None) -> Service:
    """Return the application for a model. Its scheduler has been started.

    Args:
        page: what the page to write on needs; None to serve programs alone.
    """
    metrics = Metrics()
    scheduler = Scheduler(model.generator, options.max_rows, options.max_waiting, metrics)
    models = Models(model, scheduler, options, page.others if page else None)
    runner = Runner(scheduler, metrics, options.max_request_time)
    paths = Paths(models, runner, options, scheduler, metrics)
    routes: list[BaseRoute] = [
        Route("/v1/completions", paths.complete, methods=["POST"]),
        Route("/v1/models", paths.models),
        Route("/v1/models/{model:path}", paths.one_model),
        Route(HEALTH, paths.health),
        Route("/metrics", paths.show_metrics),
        Route("/openapi.json", paths.openapi),
    ]
    if page is not None:
        routes += desk_routes(page, models, runner, options, metrics)
    methods = ["GET", "POST"] + ["PATCH", "DELETE"] * (page is not None)
    pages = Middleware(CORSMiddleware, allow_origins=options.allow_origin, allow_methods=methods, allow_headers=["*"])
    guards = Middleware(
        Guards,
        host=options.host,
        is_local=options.is_local,
        key=options.key,
        origins=options.allow_origin,
        open_paths=OPEN_PATHS if page is not None else (),
        refuse=paths.refuse,
    )
    handlers = {ApiError: paths.refuse, HTTPException: paths.refuse, Exception: paths.refuse}
    scheduler.start()
    app = Starlette(routes=routes, middleware=[pages, guards], exception_handlers=handlers)
    return Service(app, scheduler, page.thread.close if page else _nothing)


class Paths:
    """What the server answers at each path."""

    def __init__(self, models: Models, runner: Runner, options: ServingOptions, scheduler: Scheduler, metrics: Metrics):
        self._models, self._runner, self._options = models, runner, options
        self._scheduler, self._metrics = scheduler, metrics
        self._created = int(time.time())

    @property
    def _completions(self) -> Completions:
        """What answers now: requests that have begun keep their model."""
        return Completions(self._models.current, self._options, self._runner)

    async def complete(self, request: Request) -> Response:
        """Answer `POST /v1/completions`."""
        completions = self._completions
        prepared = await completions.prepare(await read_body(request, self._options.max_body))
        gone = until_gone(request)
        try:
            if prepared.request.api.stream:
                return self._noted(request, await streamed(completions.events(prepared, gone), self._metrics))
            return self._noted(request, JSONResponse(await completions.answer(prepared, gone)))
        except GoneError:
            self._metrics.gone.inc()
            return self._noted(request, Response(status_code=CLIENT_GONE))

    async def models(self, request: Request) -> Response:
        """Answer `GET /v1/models`."""
        return self._noted(request, JSONResponse({"object": "list", "data": [self._model()]}))

    async def one_model(self, request: Request) -> Response:
        """Answer `GET /v1/models/NAME`."""
        name = request.path_params["model"]
        if name != self._models.current.name:
            message = f"the model {name[:100]} does not exist: this server has {self._models.current.name}"
            raise ApiError(404, message, "model", "model_not_found")
        return self._noted(request, JSONResponse(self._model()))

    def _model(self) -> dict[str, Any]:
        return {"id": self._models.current.name, "object": "model", "created": self._created, "owned_by": "gpt2tg"}

    async def health(self, request: Request) -> Response:
        """Answer `GET /health`."""
        if self._scheduler.is_stopping:
            raise ApiError(503, "the server shuts down", code="shutting_down")
        return JSONResponse({"status": "ok"})

    async def show_metrics(self, request: Request) -> Response:
        """Answer `GET /metrics`."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, request: Request) -> Response:
        """Answer `GET /openapi.json`."""
        return JSONResponse(description(self._options))

    async def refuse(self, request: Request, error: Exception) -> Response:
        """Return the answer for an error."""
        if isinstance(error, HTTPException):
            message = f"{error.detail}: /openapi.json lists the paths"
            error = ApiError(error.status_code, message, headers=error.headers)
        if not isinstance(error, ApiError):
            error = ApiError(500, f"unexpected {type(error).__name__}: {error}", code="failed")
        error.tell()
        return self._noted(request, JSONResponse(error.body, error.status, error.headers))

    def _noted(self, request: Request, response: Response) -> Response:
        """Return a response that the metrics have counted."""
        path = request.url.path if request.url.path in ("/v1/completions", "/v1/models") else "other"
        self._metrics.answers.labels(path, str(response.status_code)).inc()
        return response
