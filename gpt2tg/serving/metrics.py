"""What Prometheus reads at `/metrics`."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

# Upper ends of the buckets, in seconds.
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.answers = Counter(
            "gpt2tg_answers", "Answers by path and HTTP status", ["path", "status"], registry=registry
        )
        self.prompt_tokens = Counter("gpt2tg_prompt_tokens", "Prompt tokens of finished requests", registry=registry)
        self.shared_tokens = Counter(
            "gpt2tg_shared_prompt_tokens",
            "Prompt tokens not computed again, since another text begins with them",
            registry=registry,
        )
        self.new_tokens = Counter("gpt2tg_new_tokens", "Tokens generated in the running batch", registry=registry)
        self.steps = Counter("gpt2tg_steps", "Forward passes of the running batch", registry=registry)
        self.gone = Counter("gpt2tg_clients_gone", "Requests whose client went away before the end", registry=registry)
        self.running = Gauge("gpt2tg_texts_running", "Texts in the running batch", registry=registry)
        self.waiting = Gauge("gpt2tg_texts_waiting", "Texts that wait for a row", registry=registry)
        self.first_piece = Histogram(
            "gpt2tg_first_piece_seconds",
            "From a request with stream to its first piece of text",
            buckets=SECONDS,
            registry=registry,
        )
        self.request = Histogram(
            "gpt2tg_request_seconds", "From a request to its end", buckets=SECONDS, registry=registry
        )

    def note_step(self, tokens: int) -> None:
        """Note a step of the running batch that has chosen so many tokens."""
        self.steps.inc()
        self.new_tokens.inc(tokens)

    def text(self) -> bytes:
        """Return all numbers in Prometheus' text format."""
        return generate_latest(self._registry)


class Stopwatch:
    """The times of one request."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics, self._start, self._has_piece = metrics, time.perf_counter(), False

    def note_piece(self) -> None:
        """Note a piece of text; only the first one counts."""
        if not self._has_piece:
            self._has_piece = True
            self._metrics.first_piece.observe(time.perf_counter() - self._start)

    def note_end(self) -> None:
        """Note the end of the request."""
        self._metrics.request.observe(time.perf_counter() - self._start)
