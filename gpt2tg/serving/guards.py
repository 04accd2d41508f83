"""Who may use the server: requests for another host, of foreign web pages or without the key are refused.

A web page that the user visits can send requests to this machine. Its browser then names the page in `Origin`; if the
page's own name was made to point here (DNS rebinding), its browser names that in `Host`.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Sequence

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from gpt2tg.serving.errors import ApiError

# The names of this machine that no one else can own.
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")

# Says whether the server is up. Needs no key.
HEALTH = "/health"

Refuse = Callable[[Request, Exception], Awaitable[ASGIApp]]


class Guards:
    """Refuses requests before any of their body is read."""

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        is_local: bool,
        key: str | None,
        origins: Sequence[str],
        open_paths: Sequence[str],
        refuse: Refuse,
    ) -> None:
        """
        Args:
            host: the address that the server listens on.
            is_local: whether that address is this machine's own.
            key: the key that requests must bring, if any.
            origins: origins of web pages that may use the server.
            open_paths: paths that need no key, as health; one that ends in a slash stands for all below it.
            refuse: makes an answer of an error.
        """
        self._app, self._key, self._origins, self._refuse = app, key, origins, refuse
        self._open = {HEALTH, *open_paths}
        self._open_folders = tuple(path for path in open_paths if path.endswith("/") and path != "/")
        self._hosts = {*LOCAL_HOSTS, host.lower(), f"[{host.lower()}]"} if is_local else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer with the error."""
        if scope["type"] == "http":
            try:
                self._check(Headers(scope=scope), scope["path"])
            except ApiError as error:
                answer = await self._refuse(Request(scope), error)
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, headers: Headers, path: str) -> None:
        host = headers.get("host", "").lower()
        if self._hosts is not None and _name(host) not in self._hosts:
            raise ApiError(403, f"the server is for this machine alone, not for the host {host[:100]}", code="host")
        origin = headers.get("origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}", *self._origins):
            raise ApiError(403, f"pages of {origin[:100]} may not use the server", code="origin")
        is_open = path in self._open or path.startswith(self._open_folders)
        if self._key is not None and not is_open:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._key.encode()):
                message = "the key is missing or wrong: send it as Authorization: Bearer KEY"
                raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _name(host: str) -> str:
    """Return the name of a host in lower case, without the port, and without the dot that may end a full name."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdecimal() else host).removesuffix(".")
