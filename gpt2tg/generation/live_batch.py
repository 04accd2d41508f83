"""Continuous batching: texts of any options join and leave a running batch between two steps.

Each text is the same, to the last bit, as when it is generated alone: its row of the KV cache, its filters and its
stream of random numbers know nothing of the others. (On a GPU, the logits of a row may differ in the last bits with the
number of rows.)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2tg.decoding.interface import (
    NotFiniteError,
    Text,
    Token,
    apply_filters,
    broken_rows,
    is_allowed,
    not_finite_error,
)
from gpt2tg.decoding.sampling import Draw, most_probable
from gpt2tg.engine.cpu.kernel_context import common_prefix
from gpt2tg.engine.model import GPT2
from gpt2tg.engine.row_pool import new_row_pool
from gpt2tg.generation.requests import RequestBatch
from gpt2tg.generation.samples import Chunk
from gpt2tg.generation.token_by_token import GrowingSample

# A text waits for a prompt that is being read if it shares so many more tokens with it than were read so far.
WORTH_WAITING = 16


@dataclass(frozen=True)
class Written:
    """A new token of a text."""

    text: LiveText
    token: Token
    chunk: Chunk | None
    """The text that the token completes; None if it completes none."""
    alternatives: tuple[tuple[int, float], ...]
    """The most probable tokens in its place and their log-probabilities, as many as the text asks for."""

    error: NotFiniteError | None = None
    """Why the text cannot go on, if it has failed; there is no token then."""


class LiveText:
    """A text that is generated in a live batch, or waits for a row."""

    def __init__(self, batch: RequestBatch, position: int, number: int, in_pieces: bool, alternatives: int = 0) -> None:
        """
        Args:
            position: the index of its request in the batch.
            number: the number of the text among those of its request.
            in_pieces: whether it is wanted while it grows.
            alternatives: the number of most probable tokens to return for each token.
        """
        request = batch.requests[position]
        self.position = position
        self.prompt = request.ids
        self.growing = GrowingSample(batch, request, request.first + number, in_pieces)
        self.stream = self.growing.stream if batch.options.strategy.samples else None
        self.filters, self.group = batch.filters.filters, (batch.filters.key, self.stream is None)
        self.alternatives = alternatives
        self.shared = 0
        """The tokens of its prompt that were not computed again, because another text begins with them."""
        self._text = Text.after(request.ids)
        self._finish = batch.endings([request])
        self._unread = 0

    @property
    def text(self) -> Text:
        """The prompt and the new tokens."""
        return self._text

    @property
    def read(self) -> int:
        """The number of tokens that the model has read."""
        return len(self._text.ids) - self._unread

    def begin(self, shared: int) -> None:
        """Begin with so many tokens read."""
        self.shared, self._unread = shared, len(self.prompt) - shared

    def take(self, most: int) -> list[int]:
        """Return the next tokens to read, at most so many."""
        part = self._text.ids[self.read : self.read + most]
        self._unread -= len(part)
        return part

    @property
    def is_reading(self) -> bool:
        """Whether more than one token has to be read before the next one can be chosen."""
        return self._unread > 1

    @property
    def is_ready(self) -> bool:
        """Whether all tokens were read, so that the next one can be chosen."""
        return not self._unread

    def append(self, token: int, logprob: float, allowed: bool) -> Token:
        """Append the chosen token unless every token is banned. Returns it, with the reason if the text ends."""
        if not allowed:
            return Token.all_banned(0)
        self._text.append(token)
        self._unread = 1
        return Token(0, token, logprob, self._finish(0, self._text.new))


class LiveBatch:
    """Texts that are generated together, a row each. Rows of finished texts are kept while there is room: the next
    texts that begin alike share what was computed."""

    def __init__(self, model: GPT2, rows: int) -> None:
        """Make an empty batch for so many texts at a time."""
        self._pool = new_row_pool(model, rows)
        self._texts: dict[int, LiveText] = {}  # by row, the oldest first
        self._kept: OrderedDict[int, list[int]] = OrderedDict()  # ids that rows without text hold, the oldest first

    @property
    def count(self) -> int:
        """The number of texts that have a row."""
        return len(self._texts)

    def add(self, text: LiveText) -> bool:
        """Give a text a row. Returns False if it has to wait: for a row, or for a prompt that begins alike."""
        if len(self._texts) == self._pool.size:
            return False
        source, shared = self._longest_prefix(text.prompt[:-1])
        reading = self._texts.get(source)
        if reading is not None and shared - reading.read >= WORTH_WAITING and self._pool.tokens_per_pass:
            return False
        row = self._free_row(source)
        if shared:
            shared = self._pool.share(source, row, shared)
        if not shared:
            self._pool.clear(row)
        text.begin(shared)
        self._texts[row] = text
        return True

    def _longest_prefix(self, prompt: Sequence[int]) -> tuple[int, int]:
        """Return the row that begins most like a prompt, and how many tokens they have in common."""
        if not self._pool.tokens_per_pass:
            return -1, 0
        held: dict[int, Sequence[int]] = {row: text.text.ids for row, text in self._texts.items()}
        found = ((common_prefix(ids, prompt), row) for row, ids in (self._kept | held).items())
        shared, row = max(found, default=(0, -1))
        return row, shared

    def _free_row(self, source: int) -> int:
        """Return a row without a text: an unused one, else the one whose text ended first, but for the source."""
        unused = (row for row in range(self._pool.size) if row not in self._texts and row not in self._kept)
        row = next(unused, None)
        if row is None:
            row = next((row for row in self._kept if row != source), source)
            del self._kept[row]
        return row

    def drop(self, texts: Iterable[LiveText]) -> None:
        """Take texts out of the batch. Those that it does not hold are ignored."""
        leaving = set(texts)
        for row in [row for row, text in self._texts.items() if text in leaving]:
            text = self._texts.pop(row)
            if self._pool.tokens_per_pass:
                self._kept[row] = text.text.ids[: text.read]
            else:
                self._pool.clear(row)

    @torch.inference_mode()
    def step(self) -> list[Written]:
        """Run a forward pass: choose the next token of each text whose prompt is read, and read on in the others.

        Texts that end or fail leave the batch.
        """
        reads = self._next_reads()
        ready = [row for row in reads if self._texts[row].is_ready]
        logits = self._pool.read(reads, ready)
        if not ready:
            return []
        texts = [self._texts[row] for row in ready]
        logprobs = logits.log_softmax(dim=1)
        broken = broken_rows(logprobs)
        if not broken:
            written = _choose(texts, logits, logprobs)
        else:
            self._discard(ready[place] for place in broken)
            whole = [place for place in range(len(texts)) if place not in broken]
            written = _choose([texts[place] for place in whole], logits[whole], logprobs[whole]) if whole else []
            written += [_failed(texts[place]) for place in broken]
        self.drop(token.text for token in written if token.token.finish_reason)
        return written

    def _discard(self, rows: Iterable[int]) -> None:
        """Take texts out of the batch, and share nothing of what was computed for them."""
        for row in rows:
            del self._texts[row]
            self._pool.clear(row)

    def _next_reads(self) -> dict[int, list[int]]:
        """Return the tokens that each row reads next. Prompts share the tokens of a pass, the oldest first."""
        reads, left = {}, self._pool.tokens_per_pass
        for row, text in self._texts.items():
            if not text.is_reading:
                reads[row] = text.take(1)
            elif left is None:
                reads[row] = text.take(len(text.prompt))
            elif left:
                reads[row] = text.take(left)
                left -= len(reads[row])
        return reads


def _choose(texts: Sequence[LiveText], logits: Tensor, logprobs: Tensor) -> list[Written]:
    """Choose the next token of each text from (B, V) logits, as `sampling.decode` does."""
    groups: dict[object, list[int]] = {}
    for place, text in enumerate(texts):
        groups.setdefault(text.group, []).append(place)
    if len(groups) == 1:
        return list(_choose_alike(texts, logits, logprobs))
    written: list[Written] = []
    for places in groups.values():
        written += _choose_alike([texts[place] for place in places], logits[places], logprobs[places])
    return written


def _choose_alike(texts: Sequence[LiveText], logits: Tensor, logprobs: Tensor) -> Iterator[Written]:
    """Choose the next tokens of texts that have the same filters."""
    filtered = apply_filters(texts[0].filters, logits, [text.text for text in texts])
    streams = [text.stream for text in texts if text.stream is not None]
    tokens = Draw(streams)(filtered, range(len(texts))) if streams else most_probable(filtered)
    allowed = is_allowed(filtered, tokens)
    of_tokens = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
    for place, text in enumerate(texts):
        token = text.append(int(tokens[place]), of_tokens[place], allowed[place])
        yield Written(text, token, text.growing.add(token), _most_probable(logprobs[place], text.alternatives))


def _failed(text: LiveText) -> Written:
    """Return that the logits of a text are not finite."""
    return Written(text, Token(0, None, 0.0, None), None, (), not_finite_error(text.text.new_count + 1))


def _most_probable(logprobs: Tensor, count: int) -> tuple[tuple[int, float], ...]:
    """Return the most probable tokens of (V,) log-probabilities, with these."""
    if not count:
        return ()
    values, ids = logprobs.topk(min(count, len(logprobs)))
    return tuple(zip(ids.tolist(), values.tolist(), strict=True))
