"""Measure servers with OpenAI's completions API under load: tokens per second, and the time to the first token.

    python text_generation_demo.py --model_name gpt2-tiny --serve --port 8001
    python -m llama_cpp.server --model model-F32.gguf --n_ctx 512 --n_threads 2 --port 8002    # from --export gguf
    python benchmarks/serve.py gpt2tg=http://127.0.0.1:8001 llama=http://127.0.0.1:8002

So many clients each send one request after the other, and read the answer as a stream. The servers take turns, and a
figure is the median of several turns. All get the same bodies: greedy, without the end-of-text token, prompts of
different lengths from a text. The load generator speaks HTTP itself, since it shares the processor with the servers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TEXT = Path(__file__).parent.parent / "sample_data.txt"


@dataclass
class Turn:
    """What one server did in one turn."""

    seconds: float = 0.0
    tokens: int = 0
    failed: int = 0
    first: list[float] = field(default_factory=list)
    """Seconds from each request to its first piece of text."""
    whole: list[float] = field(default_factory=list)
    """Seconds from each request to its end."""


def body(number: int, options: argparse.Namespace, words: list[str]) -> bytes:
    """Return a request; those of one number are equal in all turns."""
    draw = random.Random(number)
    count = draw.randint(4, options.prompt_words)
    start = draw.randrange(len(words) - count)
    fields: dict[str, Any] = {
        "prompt": " ".join(words[start : start + count]),
        "max_tokens": options.max_tokens,
        "temperature": 0,
        "logit_bias": {str(options.end_of_text): -100},
        "stream": True,
    }
    return json.dumps(fields).encode()


async def request(url: urllib.parse.SplitResult, content: bytes, turn: Turn) -> None:
    """Send a request and read its stream."""
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode() + content)
    pieces, is_done = 0, False
    while line := await reader.readline():
        if line.startswith(b"data: [DONE]"):
            is_done = True
        elif line.startswith(b"data: "):
            if not pieces:
                turn.first.append(time.perf_counter() - start)
            pieces += 1
    writer.close()
    turn.failed += not is_done
    turn.whole.append(time.perf_counter() - start)


async def client(url: urllib.parse.SplitResult, contents: list[bytes], turn: Turn) -> None:
    """Send requests one after the other until none is left."""
    while contents:
        await request(url, contents.pop(), turn)


async def run_turn(url: str, clients: int, options: argparse.Namespace, words: list[str]) -> Turn:
    """Let clients share the requests of a turn."""
    turn, count = Turn(), max(clients * options.requests, options.least)
    contents = [body(number, options, words) for number in range(count)]
    address = urllib.parse.urlsplit(url)
    start = time.perf_counter()
    await asyncio.gather(*(client(address, contents, turn) for _ in range(clients)))
    turn.seconds = time.perf_counter() - start
    turn.tokens = (count - turn.failed) * options.max_tokens
    return turn


def percentile(values: list[float], share: float) -> float:
    """Return the value that this share of the values does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def summary(turns: list[Turn]) -> dict[str, float]:
    """Return the medians over the turns."""
    return {
        "tokens_per_second": statistics.median(turn.tokens / turn.seconds for turn in turns),
        "first_p50": statistics.median(percentile(turn.first, 0.5) for turn in turns),
        "first_p95": statistics.median(percentile(turn.first, 0.95) for turn in turns),
        "whole_p95": statistics.median(percentile(turn.whole, 0.95) for turn in turns),
        "failed": sum(turn.failed for turn in turns),
    }


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("servers", nargs="+", metavar="NAME=URL")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--requests", type=int, default=2, help="requests of each client in a turn")
    parser.add_argument("--least", type=int, default=8, help="the smallest number of requests in a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--max_tokens", type=int, default=64)
    parser.add_argument("--prompt_words", type=int, default=60)
    parser.add_argument("--end_of_text", type=int, default=0, help="its id; 50256 for OpenAI's GPT-2")
    return parser.parse_args()


def main() -> None:
    """Measure, print a table to stderr and JSON to stdout."""
    options, words = parse(), TEXT.read_text(encoding="utf-8").split()
    servers = dict(server.split("=", 1) for server in options.servers)
    for url in servers.values():
        asyncio.run(run_turn(url, 2, options, words))  # a warm-up
    results = []
    print(
        f"{'clients':>7}  {'server':<12} {'tokens/s':>9} {'first p50':>10} {'p95':>7} {'end p95':>8}", file=sys.stderr
    )
    for clients in options.clients:
        turns: dict[str, list[Turn]] = {name: [] for name in servers}
        for _ in range(options.turns):
            for name, url in servers.items():
                turns[name].append(asyncio.run(run_turn(url, clients, options, words)))
        for name, found in turns.items():
            row = summary(found)
            results.append({"clients": clients, "server": name, **row})
            figures = f"{row['first_p50']:>9.3f}s {row['first_p95']:>6.3f}s {row['whole_p95']:>7.3f}s"
            failed = f"  {row['failed']:g} failed" if row["failed"] else ""
            print(f"{clients:>7}  {name:<12} {row['tokens_per_second']:>9.0f} {figures}{failed}", file=sys.stderr)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
