"""Send thousands of requests to a server, a quarter of which hang up at a random moment:

    python tests/serving/disconnects.py --requests 5000 --clients 48

Every other request must be answered with the texts that it gets when nobody else is served, and in the end no text may
be left in the server.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from gpt2tg.generation.generator import load
from gpt2tg.options import BUNDLED_MODEL, ServingOptions
from gpt2tg.serving.app import new_service
from gpt2tg.serving.models import ServedModel
from gpt2tg.serving.run import bind, new_server

WORDS = ["the", "old", "king", "said", "that", "fox", "had", "counted", "stars", "owl", "sold", "silence", "quiet"]


def kinds(count: int) -> list[dict[str, Any]]:
    """Return requests of every kind."""
    draw, found = random.Random(0), []
    extra: list[dict[str, Any]] = [
        {"temperature": 0},
        {"n": 3},
        {"repetition_penalty": 1.2, "stop": ["."]},
        {"decoding": "beam", "num_beams": 3},
        {"min_p": 0.05, "logprobs": 1},
        *[{}] * 4,
    ]
    for number in range(count):
        prompt = " ".join(draw.choice(WORDS) for _ in range(draw.randint(0, 30)))
        fields = {"prompt": prompt, "max_tokens": draw.randint(1, 40), "seed": number, **draw.choice(extra)}
        if "logprobs" not in fields:
            fields["stream"] = draw.random() < 0.4
        found.append(fields)
    return found


async def send(port: int, fields: dict[str, Any], seconds: float | None = None) -> bytes:
    """Send a request and return the answer with its head, or hang up after some seconds or the first bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    content = json.dumps(fields).encode()
    head = "POST /v1/completions HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    answer = b""
    try:
        answer = await asyncio.wait_for(reader.read() if seconds is None else reader.read(100), seconds)
    except asyncio.TimeoutError:
        pass
    finally:
        writer.transport.abort()
    return answer


def texts(answer: bytes, is_stream: bool) -> list[str]:
    """Return the texts of an answer that is complete.

    Raises:
        ValueError: it is not.
    """
    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head:
        raise ValueError(answer[-300:].decode(errors="replace"))
    if not is_stream:
        return [choice["text"] for choice in json.loads(body)["choices"]]
    if not body.endswith(b"data: [DONE]\n\n"):
        raise ValueError("the stream has no end")
    found: dict[int, str] = collections.defaultdict(str)
    for event in body.split(b"\n\n")[:-2]:
        for choice in json.loads(event.removeprefix(b"data: "))["choices"]:
            found[choice["index"]] += choice["text"]
    return [found[index] for index in sorted(found)]


async def attack(port: int, requests: int, clients: int) -> collections.Counter[str]:
    """Send the requests, and count what became of them."""
    every, draw, counts = kinds(80), random.Random(1), collections.Counter[str]()
    alone = [texts(await send(port, fields), fields.get("stream", False)) for fields in every]
    numbers = list(range(requests))

    async def client() -> None:
        while numbers:
            number = numbers.pop() % len(every)
            fields = every[number]
            if draw.random() < 0.25:
                await send(port, fields, draw.random() * 0.3)
                counts["hung up"] += 1
                continue
            try:
                is_same = texts(await send(port, fields), fields.get("stream", False)) == alone[number]
                counts["the same text" if is_same else "ANOTHER TEXT"] += 1
            except (ValueError, OSError) as error:
                print(f"{fields}: {error}")
                counts["NO ANSWER"] += 1

    await asyncio.gather(*(client() for _ in range(clients)))
    return counts


def main() -> int:
    """Serve the bundled model in a thread, attack it, and return the number of faults."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--requests", type=int, default=5000)
    flags.add_argument("--clients", type=int, default=48)
    given = flags.parse_args()
    options = ServingOptions(serve=True, port=0)
    service = new_service(ServedModel(BUNDLED_MODEL, load(BUNDLED_MODEL)), options)
    with bind(options) as listener:
        server = new_server(service, options, print)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        start = time.monotonic()
        counts = asyncio.run(attack(listener.getsockname()[1], given.requests, given.clients))
        end = time.monotonic() + 10
        while service.scheduler.size and time.monotonic() < end:
            time.sleep(0.01)
        counts["TEXTS LEFT"] = service.scheduler.size
        server.should_exit = True
        thread.join()
    print(f"{dict(counts)} in {time.monotonic() - start:.0f} s")
    return sum(count for name, count in counts.items() if name.isupper())


if __name__ == "__main__":
    sys.exit(main())
