"""Measure servers with OpenAI's completions API under load: tokens per second, and the time to the first token.

    python text_generation_demo.py --model_name gpt2-tiny --precision fp16 --serve --port 8001
    python -m llama_cpp.server --model model-F16.gguf --n_ctx 512 --n_threads 2 --interrupt_requests false --port 8002
    llama-server -m model-F16.gguf -c 8192 -np 16 -t 2 --port 8003
    python benchmarks/serve.py gpt2tg=http://127.0.0.1:8001 llama-cpp-python=http://127.0.0.1:8002 \\
        llama-server=http://127.0.0.1:8003
    python benchmarks/serve.py gpt2tg=http://127.0.0.1:8001 --long 20000       # memory over so many requests

The models are those of `finetune_gpt2.py --export gguf`; llama-server is built from the sources of llama.cpp, which are
also in the source archive of llama-cpp-python. So many clients each send one request after the other, and read the
answer as a stream. The servers take turns, and a figure is the median of several turns. All get the same bodies:
greedy, without the end-of-text token, prompts of different lengths from a text. The load generator speaks HTTP itself,
since it shares the processor with the servers. The table goes to stderr, and the results to a file. A long run measures
memory instead: the resident memory of the servers of this machine with their child processes, and is added to the
results that the file holds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import machine
import psutil
import results
from workers import report

TEXT = Path(__file__).parent.parent / "sample_data.txt"
LONG_CLIENTS, LONG_PARTS = 16, 10


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
    pieces, is_whole = 0, False
    while line := await reader.readline():
        if line.startswith(b"data: ") and b"[DONE]" not in line:
            is_whole |= b'"length"' in line  # the finish reason: not cut off for another request
            if not pieces:
                turn.first.append(time.perf_counter() - start)
            pieces += 1
    writer.close()
    turn.failed += not is_whole
    turn.whole.append(time.perf_counter() - start)


async def client(url: urllib.parse.SplitResult, contents: list[bytes], turn: Turn) -> None:
    """Send requests one after the other until none is left."""
    while contents:
        await request(url, contents.pop(), turn)


async def run_turn(url: str, clients: int, numbers: range, options: argparse.Namespace, words: list[str]) -> Turn:
    """Let clients share the requests of a turn."""
    turn = Turn()
    contents = [body(number, options, words) for number in numbers]
    address = urllib.parse.urlsplit(url)
    start = time.perf_counter()
    await asyncio.gather(*(client(address, contents, turn) for _ in range(clients)))
    turn.seconds = time.perf_counter() - start
    turn.tokens = (len(numbers) - turn.failed) * options.max_tokens
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
    parser.add_argument("--requests", type=int, default=2, help="requests of each client in a turn (default: 2)")
    parser.add_argument("--least", type=int, default=8, help="the smallest number of requests in a turn (default: 8)")
    parser.add_argument("--turns", type=int, default=3, help="(default: 3)")
    parser.add_argument("--max_tokens", type=int, default=64, help="new tokens of a request (default: 64)")
    parser.add_argument("--prompt_words", type=int, default=60, help="words of the longest prompt (default: 60)")
    parser.add_argument("--end_of_text", type=int, default=0, help="its id; 50256 for OpenAI's GPT-2 (default: 0)")
    parser.add_argument("--long", type=int, metavar="N", help="measure memory over N requests by 16 clients")
    output = results.FOLDER / "serve.json"
    parser.add_argument("--output", type=Path, default=output, help="the file of results (default: %(default)s)")
    options = parser.parse_args()
    for server in options.servers:
        name, _, url = server.partition("=")
        if not name or urllib.parse.urlsplit(url).port is None:
            parser.error(f"{server}: write NAME=http://HOST:PORT, with the port")
    return options


def measure_speed(servers: dict[str, str], options: argparse.Namespace, words: list[str]) -> list[dict]:
    """Return a row for each number of clients and each server."""
    for url in servers.values():
        asyncio.run(run_turn(url, 2, range(options.least), options, words))  # a warm-up
    report(f"{'clients':>7}  {'server':<18} {'tokens/s':>9} {'first p50':>10} {'p95':>7} {'end p95':>8}")
    rows = []
    for clients in options.clients:
        numbers = range(max(clients * options.requests, options.least))
        turns: dict[str, list[Turn]] = {name: [] for name in servers}
        for _ in range(options.turns):
            for name, url in servers.items():
                turns[name].append(asyncio.run(run_turn(url, clients, numbers, options, words)))
        for name, found in turns.items():
            row = summary(found)
            rows.append({"clients": clients, "server": name, **row})
            figures = f"{row['first_p50']:>9.3f}s {row['first_p95']:>6.3f}s {row['whole_p95']:>7.3f}s"
            failed = f"  {row['failed']:g} failed" if row["failed"] else ""
            report(f"{clients:>7}  {name:<18} {row['tokens_per_second']:>9.0f} {figures}{failed}")
    return rows


def measure_memory(servers: dict[str, str], options: argparse.Namespace, words: list[str]) -> dict[str, list[dict]]:
    """Return the memory of each server before and after each part of a long run.

    Raises:
        SystemExit: a server is not a process of this machine that we may look at.
    """
    found = {}
    for name, url in servers.items():
        process = listening(urllib.parse.urlsplit(url).port or 0)
        done, start, points = 0, time.perf_counter(), []
        for end in (LONG_CLIENTS, *(part * options.long // LONG_PARTS for part in range(1, LONG_PARTS + 1))):
            if done < end:  # the first requests are a warm-up
                turn = asyncio.run(run_turn(url, LONG_CLIENTS, range(done, end), options, words))
                done = end
                seconds, megabytes = time.perf_counter() - start, resident_megabytes(process)
                report(f"{done:>9,} requests, {seconds:7.0f} s, {megabytes:7.0f} MB, {turn.failed} failed")
                point = {"requests": done, "seconds": seconds, "megabytes": megabytes, "failed": turn.failed}
                points.append(point)
        found[name] = points
    return found


def listening(port: int) -> psutil.Process:
    """Return the process of this machine that listens on a port.

    Raises:
        SystemExit: there is none that we may look at.
    """
    for process in psutil.process_iter():
        try:
            connections = process.net_connections("tcp")
        except psutil.Error:
            continue
        if any(found.status == psutil.CONN_LISTEN and found.laddr.port == port for found in connections):
            return process
    raise SystemExit(f"no process of yours listens on port {port} of this machine: --long measures its memory")


def resident_megabytes(process: psutil.Process) -> float:
    """Return the resident memory of a process and its children."""
    return sum(one.memory_info().rss for one in (process, *process.children(recursive=True))) / 2**20


def main() -> None:
    """Measure, print a table, and write the results."""
    options, words = parse(), TEXT.read_text(encoding="utf-8").split()
    servers = dict(server.split("=", 1) for server in options.servers)
    told = {
        "run": {"repeats": options.turns, "servers": list(servers), "max_tokens": options.max_tokens},
        "machine": machine.description(),
        "results": [],
    }
    try:
        if options.long:
            if options.output.exists():
                told = json.loads(options.output.read_text(encoding="utf-8"))
            told["memory"] = told.get("memory", {}) | measure_memory(servers, options, words)
        else:
            told["results"] = measure_speed(servers, options, words)
    except OSError as error:
        raise SystemExit(f"a server does not answer: {error}") from error
    results.save(told, options.output)
    report(f"written to {options.output}")


if __name__ == "__main__":
    main()
