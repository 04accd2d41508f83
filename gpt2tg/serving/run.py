"""Run the server until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from types import FrameType

import uvicorn

from gpt2tg.errors import UserError
from gpt2tg.options import ServingOptions
from gpt2tg.serving.app import Service
from gpt2tg.serving.connections import Connection, most_connections

# Hosts that stand for all addresses of the machine, which no browser can open.
EVERY_ADDRESS = ("0.0.0.0", "::")

# Seconds that answers may take to reach their clients after the last text was cut.
SENDING_TIME = 5


def bind(options: ServingOptions) -> socket.socket:
    """Return a socket at the address to listen on, which does not listen yet.

    Raises:
        UserError: the address does not exist, or another program uses it.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise UserError(f"{options.host} is no address of this machine", "host") from None
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{options.port} on {options.host} cannot be used: {reason}", "port") from None
    return found


def new_server(
    service: Service, options: ServingOptions, say: Callable[[str], None], show: Callable[[str], None] | None = None
) -> Server:
    """Return a server. Its `run` answers requests until SIGINT or SIGTERM, which it raises again at the end.

    Args:
        say: prints a line for the user.
        show: opens the address of the page when the server listens.
    """
    config = uvicorn.Config(
        service.app,
        http=Connection,
        ws="none",
        limit_concurrency=most_connections(options),
        lifespan="off",
        log_config=None,
        log_level="critical",  # our own lines name each failure
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(options.shutdown_time) + SENDING_TIME,
    )
    return Server(config, service, options, say, show)


def counted(count: int, noun: str) -> str:
    """Return a number of things in words: 1 text, 2 texts."""
    return f"{count} {noun}{'s' * (count != 1)}"


class Server(uvicorn.Server):
    """A server that lets running texts finish for some time before it cuts them."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        options: ServingOptions,
        say: Callable[[str], None],
        show: Callable[[str], None] | None,
    ) -> None:
        super().__init__(config)
        self._scheduler, self._close = service.scheduler, service.close
        self._options, self._say, self._show = options, say, show
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_cutting = asyncio.Event()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal: the first one begins the shutdown, the second one cuts what runs."""
        if self.should_exit and self._loop is not None and not self._is_cutting.is_set():
            self._loop.call_soon_threadsafe(self._is_cutting.set)
        else:
            super().handle_exit(sig, frame)

    async def startup(self, sockets: Sequence[socket.socket] | None = None) -> None:
        """Begin to listen, and say where."""
        await super().startup(list(sockets) if sockets else None)
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            name = f"[{host}]" if ":" in host else host
            if self._options.web:
                self._say(f"the page to write on: http://{name}:{port} (Ctrl-C ends the server)")
            else:
                self._say(f"serving on http://{name}:{port}/v1 (Ctrl-C ends it)")
            if self._show is not None:
                self._show(f"http://{'localhost' if host in EVERY_ADDRESS else name}:{port}")

    async def shutdown(self, sockets: Sequence[socket.socket] | None = None) -> None:
        """Refuse new requests, wait for the running ones, and cut those that take too long."""
        self._loop = asyncio.get_running_loop()
        self._scheduler.refuse_new()
        if count := self._scheduler.size:
            limit = f"within {self._options.shutdown_time:g} seconds (Ctrl-C cuts them)"
            self._say(f"shutting down: {counted(count, 'text')} may finish {limit}")
        timer = asyncio.create_task(self._cut_in_time())
        await super().shutdown(list(sockets) if sockets else None)
        timer.cancel()
        if cut := await asyncio.to_thread(self._scheduler.stop):
            self._say(f"{counted(cut, 'request')} {'was' if cut == 1 else 'were'} cut")
        await asyncio.to_thread(self._close)  # before the signal, raised again, may end the process

    async def _cut_in_time(self) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._is_cutting.wait(), self._options.shutdown_time)
        await asyncio.to_thread(self._scheduler.stop)
