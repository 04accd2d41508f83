"""Answers in the form of OpenAI's completions: choices, log-probabilities, usage, and pieces of a stream."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.decoding.interface import FinishReason
from gpt2tg.generation.requests import RequestBatch
from gpt2tg.generation.samples import Sample
from gpt2tg.inspection.tokens import token_texts
from gpt2tg.serving.jobs import ScoredToken

# OpenAI knows two reasons: the text has ended, or it was cut.
FINISH_REASONS: Mapping[FinishReason, str] = {
    "eos": "stop",
    "stop": "stop",
    "length": "length",
    "time": "length",
    "banned": "length",
}


class Answer:
    """What all parts of an answer have in common."""

    def __init__(self, model: str, batch: RequestBatch, warnings: Sequence[str]) -> None:
        self._head: dict[str, Any] = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._batch = batch
        self._extra: dict[str, Any] = {"warnings": list(warnings)} if warnings else {}
        if batch.options.strategy.samples:
            self._extra["seed"] = batch.options.seed

    def whole(self, choices: Sequence[Mapping[str, Any]], usage: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to a request without `stream`."""
        return {**self._head, "choices": list(choices), "usage": usage, **self._extra}

    def piece(self, choice: Mapping[str, Any], include_usage: bool) -> dict[str, Any]:
        """Return an event of a stream."""
        return {**self._head, "choices": [choice], **({"usage": None} if include_usage else {}), **self._extra}

    def last(self, usage: Mapping[str, Any]) -> dict[str, Any]:
        """Return the last event of a stream whose usage is wanted."""
        return {**self._head, "choices": [], "usage": usage, **self._extra}


def choice(index: int, text: str, finish_reason: FinishReason | None, logprobs: Any) -> dict[str, Any]:
    """Return a text, or a piece of it."""
    reason = None if finish_reason is None else FINISH_REASONS[finish_reason]
    return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": reason}


def usage(batch: RequestBatch, samples: Sequence[Sample], shared: int) -> dict[str, Any]:
    """Return how many tokens were read and written, all drawn texts included."""
    prompt, new = sum(len(request.ids) for request in batch.requests), sum(len(sample.ids) for sample in samples)
    details = {"cached_tokens": min(shared, prompt)}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": details,
    }


class TokenTable:
    """The `logprobs` of a choice: its tokens in columns, with the place of each in the text."""

    def __init__(self, tokenizer: TextTokenizer, before: Sequence[int], offset: int) -> None:
        """
        Args:
            before: the tokens before the first one.
            offset: the place in the text of the choice where the first token begins.
        """
        self._tokenizer, self._before, self._offset = tokenizer, list(before), offset
        self._columns: dict[str, list[Any]] = _empty()

    def add(self, tokens: Sequence[ScoredToken], is_unknown_first: bool = False) -> None:
        """Add tokens.

        Args:
            is_unknown_first: whether the first one begins the text, so that it has no probability.
        """
        if not tokens:
            return
        texts = token_texts(self._tokenizer, [token.id for token in tokens], self._before)
        for place, (token, text) in enumerate(zip(tokens, texts, strict=True)):
            is_unknown = is_unknown_first and not place
            self._columns["tokens"].append(text)
            self._columns["token_logprobs"].append(None if is_unknown else _finite(token.logprob))
            self._columns["top_logprobs"].append(None if is_unknown else self._named(token.alternatives))
            self._columns["text_offset"].append(self._offset)
            self._offset += len(text)
        self._before += [token.id for token in tokens]

    def take(self, end: int | None = None) -> dict[str, list[Any]]:
        """Return the tokens since the last call.

        Args:
            end: the length of the text, if it is finished. Tokens beyond it, such as those of a stop string, are left
                out.
        """
        taken, self._columns = self._columns, _empty()
        while end is not None and taken["text_offset"] and taken["text_offset"][-1] >= end:
            for column in taken.values():
                column.pop()
        return taken

    def _named(self, alternatives: Sequence[tuple[int, float]]) -> dict[str, float]:
        named: dict[str, float] = {}
        for token, logprob in alternatives:  # two parts of characters may look alike: the more probable one stays
            named.setdefault(self._tokenizer.name(token), _finite(logprob))
        return named


def _empty() -> dict[str, list[Any]]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def _finite(logprob: float) -> float:
    """Return a log-probability that JSON can hold."""
    return logprob if math.isfinite(logprob) else -9999.0
