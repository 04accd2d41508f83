"""A server without a port: its application in the process of the test, and OpenAI's client on top of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx2
import openai

from gpt2tg.generation.generator import Generator
from gpt2tg.options import ServingOptions
from gpt2tg.serving.app import Service, new_service
from gpt2tg.serving.models import ServedModel

Result = TypeVar("Result")


class Client:
    """Sends requests to a service."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def request(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        """Return the answer to one request."""
        return self.run(lambda http, _: http.request(method, path, **arguments))

    def complete(self, **fields: Any) -> httpx2.Response:
        return self.request("POST", "/v1/completions", json=fields)

    def run(self, talk: Callable[[httpx2.AsyncClient, openai.AsyncOpenAI], Awaitable[Result]]) -> Result:
        """Run a coroutine function with an HTTP client and an OpenAI client."""

        async def with_clients() -> Result:
            transport = httpx2.ASGITransport(app=self.service.app)
            async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as http:
                client = openai.AsyncOpenAI(
                    api_key="none", base_url="http://localhost/v1", http_client=http, max_retries=0
                )
                return await talk(http, client)

        return asyncio.run(with_clients())


@contextmanager
def serving(generator: Generator, **options: Any) -> Iterator[Client]:
    """A client of a new service, which is stopped at the end."""
    defaults, page = options.pop("defaults", {}), options.pop("page", None)
    service = new_service(ServedModel("tiny", generator, defaults), ServingOptions(serve=True, **options), page)
    try:
        yield Client(service)
    finally:
        service.scheduler.stop()
