"""The files of the page to write on, with headers that let it load nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from starlette.responses import FileResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

FOLDER = Path(__file__).parent / "static"

# Paths that need no key: the page asks for it. The number of a report is as long as a key.
OPEN_PATHS = ("/", "/static/", "/api/reports/")

SECURITY = {
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asked for again each time, so that an update is seen
}

# A report has its styles and scripts within, and may do nothing else.
REPORT = SECURITY | {
    "Content-Security-Policy": (
        "sandbox allow-scripts; default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        "img-src data:; frame-ancestors 'self'"
    )
}

# Answers in JSON, which no browser keeps.
PRIVATE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def page_routes() -> list[BaseRoute]:
    """Return the routes of the page and its files."""

    async def index(_: object) -> FileResponse:
        return FileResponse(FOLDER / "index.html", headers=SECURITY)

    return [Route("/", index), Mount("/static", WithHeaders(StaticFiles(directory=FOLDER)))]


class WithHeaders:
    """Adds the headers to all answers of an application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the application does."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                new = [(name.lower().encode(), value.encode()) for name, value in SECURITY.items()]
                message = {**message, "headers": [*message["headers"], *new]}
            await send(message)

        await self._app(scope, receive, send_with_headers)
