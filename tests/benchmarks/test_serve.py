"""The load generator of benchmarks/serve.py."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import urllib.parse

import pytest
import serve


def test_memory_of_the_process_that_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        process = serve.listening(port)
    assert process.pid == os.getpid()
    assert serve.resident_megabytes(process) > 10
    with pytest.raises(SystemExit, match="no process of yours listens"):
        serve.listening(port)


def answered(*events: str) -> serve.Turn:
    """Send one request to a server that answers with these events, and return what was noted."""
    turn = serve.Turn()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write("".join(f"data: {event}\n\n" for event in events).encode())
        writer.close()

    async def run() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            await serve.request(urllib.parse.urlsplit(f"http://127.0.0.1:{port}"), b"{}", turn)

    asyncio.run(run())
    return turn


def piece(text: str, reason: str | None = None) -> str:
    """Return one event of a stream of completions."""
    return json.dumps({"choices": [{"text": text, "finish_reason": reason}]})


def test_a_whole_answer_is_timed() -> None:
    turn = answered(piece("a"), piece("b"), piece("", "length"), "[DONE]")
    assert turn.failed == 0
    assert 0 < turn.first[0] <= turn.whole[0]


@pytest.mark.parametrize("reason", [None, "stop"])
def test_an_answer_that_was_cut_off_has_failed(reason: str | None) -> None:
    """A server that drops a request for a newer one ends its stream as if it was whole."""
    assert answered(piece("a"), piece("b", reason), "[DONE]").failed == 1
