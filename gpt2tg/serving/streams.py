"""Server-sent events, and clients that go away while they are sent."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gpt2tg.serving.metrics import Metrics
from gpt2tg.serving.running import GoneError, WaitUntilGone


def event(value: Mapping[str, Any]) -> bytes:
    """Return a server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


async def streamed(events: AsyncGenerator[bytes, None], metrics: Metrics) -> Response:
    """Return a stream that has begun, so that an error before the first event still has its status."""
    first = await anext(events)

    async def all_events() -> AsyncIterator[bytes]:
        is_whole = False
        try:
            yield first
            async for each in events:
                yield each
            is_whole = True
        except GoneError:
            pass
        finally:  # Starlette may notice first that the client is gone, and cancels this
            await events.aclose()
            if not is_whole:
                metrics.gone.inc()

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(all_events(), media_type="text/event-stream", headers=headers)


def until_gone(request: Request) -> WaitUntilGone:
    """Return a coroutine function that returns when the client has gone away."""
    return partial(_wait_until_gone, request)


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
