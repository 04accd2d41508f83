"""Connections of clients: how many there may be at a time, and how long one may take to ask for something."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from gpt2tg.options import ServingOptions
from gpt2tg.serving.errors import ApiError
from gpt2tg.serving.scheduler import RETRY_AFTER

# Seconds in which a client must send the headers of its next request.
HEADER_TIME = 10

# Connections for those who generate nothing, such as the files of the page, and for those who are told to wait.
SPARE_CONNECTIONS = 128


def most_connections(options: ServingOptions) -> int:
    """Return how many connections there may be: one for each text that is generated or waits, and some more."""
    return options.max_rows + options.max_waiting + SPARE_CONNECTIONS


class Connection(H11Protocol):
    """A connection that is closed if no request arrives in time. Above `limit_concurrency` of them, it is refused."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._most, self.limit_concurrency = self.limit_concurrency, None  # uvicorn itself refuses in plain text
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Begin to wait for a request. Refused clients get an answer; if they are too many, they get none."""
        super().connection_made(transport)
        if self._most is not None and len(self.connections) > self._most:
            self.app = refuse
            if len(self.connections) > 2 * self._most:
                transport.abort()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        super().connection_lost(exc)
        self._stop()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request, and wait for the rest of its headers."""
        super().data_received(data)
        self._watch()

    def _watch(self) -> None:
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering or self.transport.is_closing():
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEADER_TIME, self.transport.close)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer that there are too many connections, as an ASGI application."""
    headers = {"Retry-After": RETRY_AFTER, "Connection": "close"}
    error = ApiError(429, "too many connections: try again later", code="busy", headers=headers)
    await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)
