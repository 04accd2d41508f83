"""Who may use the server, how much one may ask for, and what becomes of requests that are cut."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from serving_client import Client, serving

from gpt2tg.errors import UserError
from gpt2tg.generation import live_batch
from gpt2tg.generation.generator import Generator, load
from gpt2tg.generation.live_batch import LiveBatch
from gpt2tg.options import ServingOptions
from gpt2tg.options.serving import KEY_VARIABLE
from gpt2tg.serving import completions
from gpt2tg.serving.app import new_service
from gpt2tg.serving.jobs import Job
from gpt2tg.serving.models import ServedModel
from gpt2tg.serving.run import bind
from gpt2tg.serving.scheduler import StoppedError

LONG = {"prompt": "The owl", "decoding": "sample", "overflow": "slide", "max_tokens": 100_000, "suppress_eos": True}


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Generator:
    return load(str(model_dir))


@pytest.fixture(scope="module")
def client(generator: Generator) -> Iterator[Client]:
    with serving(generator, max_body=1000, allow_origin=["https://example.org"]) as found:
        yield found


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost:8000"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "127.0.0.1"}, 200),
        ({"host": "localhost.:8000"}, 200),
        ({"host": "LOCALHOST", "origin": "http://localhost"}, 200),
        ({"host": "evil.example."}, 403),
        ({"host": "evil.example:8000"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://localhost"}, 200),
        ({"origin": "https://example.org"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_foreign_hosts_and_pages_are_refused(client: Client, headers: dict[str, str], status: int) -> None:
    for path in ("/health", "/v1/models"):
        assert client.request("GET", path, headers=headers).status_code == status


def test_allowed_page_may_read_answers(client: Client) -> None:
    """As its browser asks: first whether it may send the request, then for the answer's header."""
    for origin, allowed in (("https://example.org", "https://example.org"), ("http://evil.example", None)):
        headers = {"origin": origin, "access-control-request-method": "POST"}
        asked = client.request("OPTIONS", "/v1/completions", headers=headers)
        answer = client.request("GET", "/v1/models", headers=headers)
        assert (asked.headers.get("access-control-allow-origin"), asked.is_success) == (allowed, allowed is not None)
        assert (answer.headers.get("access-control-allow-origin"), answer.is_success) == (allowed, allowed is not None)


def test_key_is_needed_for_all_but_health(generator: Generator) -> None:
    with serving(generator, api_key="secret", host="0.0.0.0") as client:
        assert client.request("GET", "/health", headers={"host": "any.example"}).status_code == 200
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
                answer = client.request("GET", path, headers=headers)
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert client.request("GET", "/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_other_machines_are_served_with_a_key_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    for host in ("0.0.0.0", "::", "192.168.1.7", "server.example"):
        with pytest.raises(UserError, match="host"):
            ServingOptions(serve=True, host=host)
        assert ServingOptions(serve=True, host=host, api_key="secret").key == "secret"
    for host in ("127.0.0.1", "::1", "localhost", "127.3.2.1"):
        assert ServingOptions(serve=True, host=host).key is None
    monkeypatch.setenv(KEY_VARIABLE, "hidden")
    assert ServingOptions(serve=True, host="0.0.0.0").key == "hidden"


def test_key_that_no_client_can_send_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("", " secret", "secret ", "schl\u00fcssel", "a\nb"):
        with pytest.raises(UserError, match="api_key"):
            ServingOptions(serve=True, api_key=key)
    for key in ("secret ", "schl\u00fcssel", "\udcff"):
        monkeypatch.setattr(os, "environ", {KEY_VARIABLE: key})
        with pytest.raises(UserError, match=KEY_VARIABLE):
            ServingOptions(serve=True)


def test_origin_that_no_browser_sends_is_refused() -> None:
    for origin in ("nonsense", "*", "https://example.org/", "https://Example.org", "example.org:80"):
        with pytest.raises(UserError, match="allow_origin"):
            ServingOptions(serve=True, allow_origin=[origin])
    for origin in ("http://localhost:3000", "https://example.org", "http://[::1]:80", "chrome-extension://abc"):
        assert ServingOptions(serve=True, allow_origin=[origin]).allow_origin == (origin,)


def test_errors_speak_of_json(client: Client) -> None:
    wrong = ({"stop": 5}, {"stream": "yes"}, {"max_tokens": "5"}, {"decoding": "x" * 900}, {"model": "x\n" * 400})
    messages = [client.complete(prompt="The owl", **fields).json()["error"]["message"] for fields in wrong]
    expected = ("a list of strings", "true or false", "a whole number or null")
    assert [message.rpartition(" give ")[2] for message in messages[:3]] == list(expected)
    values = ({"echo": None, "stream": "True"}, {"top_k": True}, {"top_k": [None, "it's"]}, {"stop": {"a": False}})
    shown = [client.complete(prompt="The owl", **fields).json()["error"]["message"] for fields in values]
    begun = [message.partition(" is not valid")[0] for message in shown]
    assert begun == ['stream: "True"', "top_k: true", 'top_k: [null, "it\'s"]', 'stop: {"a": false}']
    assert all(len(message) < 300 and "\n" not in message for message in messages)


def test_address_that_is_taken_is_named() -> None:
    with bind(ServingOptions(serve=True, port=0)) as taken:
        taken.listen()
        with pytest.raises(UserError, match=r"port \d+ on 127.0.0.1 cannot be used: address already in use"):
            bind(ServingOptions(serve=True, port=taken.getsockname()[1]))
    impossible = "a" * 64  # no label of a name is so long, so that nobody is asked for it
    with pytest.raises(UserError, match=f"host {impossible} is no address"):
        bind(ServingOptions(serve=True, host=impossible, api_key="x"))


def test_long_body_is_refused_with_and_without_its_length(client: Client) -> None:
    async def parts() -> Any:
        for _ in range(3):
            yield b" " * 500

    for content in (b" " * 1001, parts()):
        answer = client.request("POST", "/v1/completions", content=content)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_full_server_refuses_and_recovers(generator: Generator) -> None:
    with serving(generator, max_rows=1, max_waiting=2) as client:

        async def talk(http: httpx2.AsyncClient, _: openai.AsyncOpenAI) -> None:
            waiting = [asyncio.ensure_future(http.post("/v1/completions", json=LONG)) for _ in range(3)]
            while client.service.scheduler.size < 3:
                await asyncio.sleep(0.002)
            refused = await http.post("/v1/completions", json={"prompt": "A fox"})
            assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
            assert int(refused.headers["retry-after"]) > 0
            for request in waiting:
                request.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            while client.service.scheduler.size:
                await asyncio.sleep(0.002)
            assert (await http.post("/v1/completions", json={"prompt": "A fox"})).status_code == 200

        client.run(talk)


def gone_clients(client: Client) -> float:
    metrics = client.request("GET", "/metrics").text
    return float(re.findall(r"^gpt2tg_clients_gone_total (.+)$", metrics, re.MULTILINE)[0])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("more", [{}, {"overflow": "error", "max_tokens": 50, "n": 60}, {"decoding": "beam"}])
def test_client_that_goes_away_frees_its_rows(client: Client, stream: bool, more: dict[str, Any]) -> None:
    body = json.dumps({**LONG, "stream": stream, **more}).encode()

    async def talk() -> None:
        gone, sent = asyncio.Event(), list[Any]()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"localhost")]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers, "query_string": b""}
        answering = asyncio.ensure_future(client.service.app(scope, receive, send))
        while not client.service.scheduler.size and not answering.done():
            await asyncio.sleep(0.001)
        while stream and not more and len(sent) < 3:  # here, a part of the text has been sent
            await asyncio.sleep(0.001)
        gone.set()
        await answering

    before = gone_clients(client)
    asyncio.run(talk())
    wait_until(lambda: client.service.scheduler.size == 0)
    assert gone_clients(client) == before + 1


def test_time_limit_ends_a_text(generator: Generator) -> None:
    with serving(generator, max_request_time=0.05) as client:
        (choice,) = client.complete(**LONG).json()["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["text"]


def test_shutdown_says_what_was_cut(generator: Generator) -> None:
    with serving(generator) as client:
        cut: list[int] = []

        async def talk(http: httpx2.AsyncClient, _: openai.AsyncOpenAI) -> list[httpx2.Response]:
            requests = [http.post("/v1/completions", json={**LONG, "stream": stream}) for stream in (False, True)]
            running = [asyncio.ensure_future(request) for request in requests]
            while client.service.scheduler.size < 2:
                await asyncio.sleep(0.002)
            await asyncio.sleep(0.05)
            cut.append(await asyncio.to_thread(client.service.scheduler.stop))
            return [*await asyncio.gather(*running), await http.post("/v1/completions", json={"prompt": "A"})]

        whole, streamed, late = client.run(talk)
    assert cut == [2]
    assert (whole.status_code, late.status_code) == (503, 503)
    *_, last = streamed.text.strip().split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"


def test_failure_is_told_and_does_not_end_the_server(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(generator) as client:
        with monkeypatch.context() as patch:
            patch.setattr(live_batch, "broken_rows", lambda *_: 1 / 0)
            answer = client.complete(prompt="The owl")
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
        assert client.complete(prompt="The owl").status_code == 200


def test_broken_logits_fail_their_request_alone(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    choose = live_batch.broken_rows
    monkeypatch.setattr(live_batch, "broken_rows", lambda logprobs: [1] if len(logprobs) == 3 else choose(logprobs))
    fields = {"prompt": "The owl", "seed": 1, "max_tokens": 20, "suppress_eos": True}

    async def talk(http: httpx2.AsyncClient, _: openai.AsyncOpenAI) -> list[httpx2.Response]:
        requests = [{**fields, "n": 2, "max_tokens": 40}, fields]
        return await asyncio.gather(*(http.post("/v1/completions", json=request) for request in requests))

    with serving(generator) as client:
        broken, whole = client.run(talk)
        assert client.service.scheduler.size == 0
        assert whole.json()["choices"] == client.complete(**fields).json()["choices"]
    assert (broken.status_code, whole.status_code) == (500, 200)
    assert "not finite" in broken.json()["error"]["message"]


def test_other_paths_answer(client: Client) -> None:
    assert client.complete(prompt="The owl", n=2, seed=1, max_tokens=4).status_code == 200
    assert client.request("GET", "/health").json() == {"status": "ok"}
    (model,) = client.request("GET", "/v1/models").json()["data"]
    assert client.request("GET", f"/v1/models/{model['id']}").json() == model
    assert client.request("GET", "/v1/models/other").status_code == 404
    metrics = client.request("GET", "/metrics").text
    assert 'gpt2tg_answers_total{path="/v1/completions",status="200"}' in metrics
    described = client.request("GET", "/openapi.json").json()
    fields = described["components"]["schemas"]["CompletionRequest"]["properties"]
    assert {"prompt", "max_tokens", "n", "stop", "top_k", "num_beams", "repetition_penalty"} <= fields.keys()
    for method, path, status in (("GET", "/nothing", 404), ("GET", "/v1/completions", 405)):
        answer = client.request(method, path)
        assert (answer.status_code, answer.json()["error"]["type"]) == (status, "invalid_request_error")


def test_failed_start_of_a_request_ends_that_request_alone(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(generator) as client:
        with monkeypatch.context() as patch:
            patch.setattr(Job, "begin", lambda self: 1 / 0)
            assert client.complete(prompt="The owl").status_code == 500
        assert client.complete(prompt="The owl").status_code == 200
        assert client.service.scheduler.size == 0


def test_failure_that_nothing_can_follow_is_answered_and_told(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gpt2tg.serving import scheduler

    with serving(generator) as client:
        monkeypatch.setattr(scheduler.LiveBatch, "step", lambda self: 1 / 0)
        monkeypatch.setattr(scheduler, "LiveBatch", lambda *_: 1 / 0)
        assert client.complete(prompt="The owl").status_code == 500
        wait_until(lambda: client.request("GET", "/health").status_code == 503)
        assert client.complete(prompt="The owl").status_code == 503
    assert "no more texts can be generated" in capsys.readouterr().err


def test_failed_stream_is_told(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step, steps = LiveBatch.step, iter(range(20))

    def failing(self: LiveBatch) -> Any:
        return step(self) if next(steps) < 19 else 1 / 0

    monkeypatch.setattr(LiveBatch, "step", failing)
    with serving(generator) as client:
        answer = client.complete(prompt="The owl", max_tokens=50, stream=True, suppress_eos=True)
    assert (answer.status_code, '"server_error"' in answer.text) == (200, True)
    assert "a request failed: unexpected ZeroDivisionError" in capsys.readouterr().err


def test_scoring_lets_others_pass_and_ends_when_nobody_waits(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scored text of any length takes no more than a forward pass between two steps of the others."""
    parts: list[int] = []

    def endless(*_: Any) -> Iterator[list[Any]]:
        while True:
            parts.append(1)
            yield []

    monkeypatch.setattr(completions, "inspect_parts", endless)
    scored = {"prompt": "The owl", "echo": True, "logprobs": 1, "max_tokens": 0}
    with serving(generator, max_request_time=0.3) as client:

        async def talk(http: httpx2.AsyncClient, _: openai.AsyncOpenAI) -> None:
            scoring = asyncio.ensure_future(http.post("/v1/completions", json=scored))
            while not parts:
                await asyncio.sleep(0.002)
            assert (await http.post("/v1/completions", json={"prompt": "A fox"})).status_code == 200
            answer = await scoring
            assert (answer.status_code, "0.3 seconds" in answer.text) == (500, True)

        client.run(talk)
        wait_until(lambda: client.service.scheduler.size == 0)


def test_stop_answers_calls_that_nobody_waits_for(generator: Generator) -> None:
    service = new_service(ServedModel("tiny", generator), ServingOptions(serve=True))
    futures = [service.scheduler.call(iter(lambda: [1], None)) for _ in range(2)]
    assert futures[0].cancel()
    service.scheduler.stop()
    assert isinstance(futures[1].exception(10), StoppedError)
