"""Connections on a real port: how many there may be, and how long a client may take to ask for something."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from gpt2tg.generation.generator import Generator, load
from gpt2tg.options import ServingOptions
from gpt2tg.serving import connections
from gpt2tg.serving.app import new_service
from gpt2tg.serving.models import ServedModel
from gpt2tg.serving.run import bind, new_server

ASK = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Generator:
    return load(str(model_dir))


@contextmanager
def listening(generator: Generator) -> Iterator[Callable[[], socket.socket]]:
    """A server that runs in a thread, and what connects to it."""
    options = ServingOptions(serve=True, port=0, max_rows=1, max_waiting=0, shutdown_time=0)
    server = new_server(new_service(ServedModel("tiny", generator), options), options, lambda _: None)
    with bind(options) as listener, ExitStack() as opened:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        while not server.started:
            time.sleep(0.005)
        try:
            yield lambda: opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
        finally:
            server.should_exit = True
            thread.join()


def answered(connection: socket.socket) -> tuple[int, bytes]:
    """Ask whether the server is up. Returns the status and the body of the answer."""
    connection.sendall(ASK)
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer.status, answer.read()


def test_client_that_sends_no_headers_is_cut(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_TIME", 0.2)
    with listening(generator) as connect:
        silent, slow, used = connect(), connect(), connect()
        slow.sendall(ASK[:30])
        assert answered(used)[0] == 200
        used.sendall(ASK[:30])  # without this, the connection would be kept for the next request
        assert answered(connect())[0] == 200
        start = time.monotonic()
        assert [connection.recv(1) for connection in (silent, slow, used)] == [b"", b"", b""]
        assert time.monotonic() - start < 3


def test_too_many_connections_are_refused_in_the_shape_of_openai(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "SPARE_CONNECTIONS", 1)
    with listening(generator) as connect:
        first, second, third = connect(), connect(), connect()
        assert (answered(first)[0], answered(second)[0]) == (200, 200)
        status, body = answered(third)
        error = json.loads(body)["error"]
        assert (status, error["type"], error["code"]) == (429, "rate_limit_error", "busy")
        assert third.recv(1) == b""
        first.close()
        assert answered(connect())[0] == 200
