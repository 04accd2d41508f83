"""The generation that a request asks for, and what becomes known of it piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from gpt2tg.generation.generator import Generator
from gpt2tg.generation.live_batch import LiveText, Written
from gpt2tg.generation.requests import RequestBatch
from gpt2tg.generation.samples import Chunk, Sample


@dataclass(frozen=True)
class ScoredToken:
    """A token with its log-probability and those of the most probable tokens in its place."""

    id: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Progress:
    """More of one text."""

    position: int
    """The index of its prompt in the request."""
    number: int
    """The number of the text among those of its prompt."""
    piece: str
    tokens: tuple[ScoredToken, ...] = ()
    """The tokens of the piece, if they are wanted."""
    sample: Sample | None = None
    """The finished text, with its last piece."""


@dataclass(frozen=True)
class Finished:
    """The end of a job."""

    error: Exception | None = None
    """Why it has failed; None if all of its texts are finished."""
    shared: int = 0
    """The prompt tokens that were not computed again, because another text begins with them."""


@dataclass(eq=False)
class Job:
    """Texts to generate for a request."""

    generator: Generator
    batch: RequestBatch
    in_pieces: bool
    alternatives: int | None
    """The number of most probable tokens to return for each token; None if not even its own probability is wanted."""
    report: Callable[[Progress | Finished], None]
    """Called from the thread of the scheduler, with `Finished` at the end."""
    is_cancelled: bool = False
    unfinished: int = 0
    """Texts in the live batch, or waiting for it, that have not ended."""
    shared: int = 0
    texts: list[LiveText] = field(default_factory=list)
    _tokens: dict[tuple[int, int], list[ScoredToken]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The number of rows that it takes."""
        options = self.batch.options
        return len(self.batch.requests) * (options.num_beams if options.strategy.beams else options.draws)

    @property
    def is_live(self) -> bool:
        """Whether its texts can join others."""
        return is_live(self.generator, self.batch)

    def begin(self) -> list[LiveText]:
        """Return its texts, for a live batch."""
        self.texts = [
            LiveText(self.batch, position, number, self.in_pieces, self.alternatives or 0)
            for position in range(len(self.batch.requests))
            for number in range(self.batch.options.draws)
        ]
        self.unfinished = len(self.texts)
        return self.texts

    def write(self, written: Written) -> bool:
        """Report a token of the live batch. Returns whether it ends the last text."""
        text, token = written.text, written.token
        number, tokens = text.growing.index, list[ScoredToken]()
        if self.alternatives is not None:
            tokens = self._tokens.setdefault((text.position, number), [])
            if token.id is not None:
                tokens.append(ScoredToken(token.id, token.logprob, written.alternatives))
        if written.chunk is not None:
            self.report(Progress(text.position, number, written.chunk.text, tuple(tokens), written.chunk.sample))
            tokens.clear()
        if token.finish_reason:
            self.unfinished -= 1
            self.shared += text.shared
        return not self.unfinished

    def write_alone(self) -> Iterator[None]:
        """Generate the texts outside the live batch, and yield after each step."""
        positions = {request.index: position for position, request in enumerate(self.batch.requests)}
        for chunk in self.generator.steps(self.batch, in_pieces=self.in_pieces):
            if chunk is not None:
                self.report(_progress(chunk, positions[chunk.prompt_index]))
            yield


def is_live(generator: Generator, batch: RequestBatch) -> bool:
    """Whether texts can join a live batch: they are generated token by token, within the context length."""
    options, positions = batch.options, generator.model.shape.n_positions
    return not options.strategy.beams and options.decoding != "contrastive" and batch.longest <= positions


def _progress(chunk: Chunk, position: int) -> Progress:
    return Progress(position, chunk.index, chunk.text, sample=chunk.sample)
