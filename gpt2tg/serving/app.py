"""The paths of the server, as an ASGI application."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from gpt2tg.generation.generator import Generator
from gpt2tg.options import ServingOptions
from gpt2tg.serving.completions import Completions, GoneError
from gpt2tg.serving.errors import ApiError
from gpt2tg.serving.guards import HEALTH, Guards
from gpt2tg.serving.metrics import Metrics
from gpt2tg.serving.openapi import description
from gpt2tg.serving.scheduler import Scheduler

# Seconds in which the body of a request must arrive.
BODY_TIME = 30

# The status of an answer that nobody receives, as some servers log it.
CLIENT_GONE = 499


@dataclass(frozen=True)
class Service:
    """The application, and the thread that computes for it."""

    app: Starlette
    scheduler: Scheduler


def new_service(generator: Generator, model: str, defaults: Mapping[str, Any], options: ServingOptions) -> Service:
    """Return the application for a model. Its scheduler has been started.

    Args:
        model: the name of the model.
        defaults: decoding options for what a request leaves out.
    """
    metrics = Metrics()
    scheduler = Scheduler(generator, options.max_rows, options.max_waiting, metrics)
    paths = Paths(Completions(generator, model, defaults, options, scheduler, metrics), options, scheduler, metrics)
    pages = Middleware(
        CORSMiddleware, allow_origins=options.allow_origin, allow_methods=["GET", "POST"], allow_headers=["*"]
    )
    guards = Middleware(
        Guards,
        host=options.host,
        is_local=options.is_local,
        key=options.key,
        origins=options.allow_origin,
        refuse=paths.refuse,
    )
    routes = [
        Route("/v1/completions", paths.complete, methods=["POST"]),
        Route("/v1/models", paths.models),
        Route("/v1/models/{model:path}", paths.one_model),
        Route(HEALTH, paths.health),
        Route("/metrics", paths.show_metrics),
        Route("/openapi.json", paths.openapi),
    ]
    handlers = {ApiError: paths.refuse, HTTPException: paths.refuse, Exception: paths.refuse}
    scheduler.start()
    return Service(Starlette(routes=routes, middleware=[pages, guards], exception_handlers=handlers), scheduler)


class Paths:
    """What the server answers at each path."""

    def __init__(
        self, completions: Completions, options: ServingOptions, scheduler: Scheduler, metrics: Metrics
    ) -> None:
        self._completions, self._options, self._scheduler, self._metrics = completions, options, scheduler, metrics
        self._created = int(time.time())

    async def complete(self, request: Request) -> Response:
        """Answer `POST /v1/completions`."""
        prepared = await self._completions.prepare(await self._body(request))
        wait_until_gone = partial(_wait_until_gone, request)
        try:
            if prepared.request.api.stream:
                return await self._streamed(self._completions.events(prepared, wait_until_gone), request)
            return self._noted(request, JSONResponse(await self._completions.answer(prepared, wait_until_gone)))
        except GoneError:
            self._metrics.gone.inc()
            return self._noted(request, Response(status_code=CLIENT_GONE))

    async def _body(self, request: Request) -> bytes:
        """Return the body, unless it is too long or too slow."""
        body, most = bytearray(), self._options.max_body
        error = ApiError(413, f"the body has more than {most} bytes", code="body_too_large")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > most:
            raise error

        async def read() -> None:
            async for part in request.stream():
                body.extend(part)
                if len(body) > most:
                    raise error

        try:
            await asyncio.wait_for(read(), BODY_TIME)
        except asyncio.TimeoutError:
            raise ApiError(408, f"the body did not arrive within {BODY_TIME} seconds") from None
        except ClientDisconnect:
            raise ApiError(400, "the body is not complete") from None
        return bytes(body)

    async def _streamed(self, events: AsyncIterator[bytes], request: Request) -> Response:
        """Return a stream that has begun, so that an error before the first event still has its status."""
        first = await anext(events)

        async def all_events() -> AsyncIterator[bytes]:
            is_whole = False
            try:
                yield first
                async for event in events:
                    yield event
                is_whole = True
            except GoneError:
                pass
            finally:  # Starlette may notice first that the client is gone, and cancels this
                if not is_whole:
                    self._metrics.gone.inc()

        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return self._noted(request, StreamingResponse(all_events(), media_type="text/event-stream", headers=headers))

    async def models(self, request: Request) -> Response:
        """Answer `GET /v1/models`."""
        return self._noted(request, JSONResponse({"object": "list", "data": [self._model()]}))

    async def one_model(self, request: Request) -> Response:
        """Answer `GET /v1/models/NAME`."""
        name = request.path_params["model"]
        if name != self._completions.model:
            message = f"the model {name[:100]} does not exist: this server has {self._completions.model}"
            raise ApiError(404, message, "model", "model_not_found")
        return self._noted(request, JSONResponse(self._model()))

    def _model(self) -> dict[str, Any]:
        return {"id": self._completions.model, "object": "model", "created": self._created, "owned_by": "gpt2tg"}

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


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
