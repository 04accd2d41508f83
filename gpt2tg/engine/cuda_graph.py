"""Texts written without a word between processor and GPU for every token: a static cache and captured steps.

A step reads one token of every row, chooses the next and notes it, all on the device, with shapes that never change.
On a CUDA GPU it is captured once as a graph and then replayed, several dozen steps in a row; only then are the tokens
fetched, while the next steps run already. What was written beyond an end is dropped, and whoever waits takes the row.

Letters in shapes as in model.py; R rows of a batch, S steps of a chunk, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from gpt2tg.engine.model import GPT2, Attended

# Steps between two looks at what was written.
STEPS = 24

# The cache is looked at as far as the longest row may come in a chunk, rounded up to this, twice this, and so on.
SMALLEST_BUCKET = 128

# Tokens of prompts, padding included, that are read at once; more would ask for much memory.
READ_AT_ONCE = 2**15

# (R, V) logits and (R,) uniform numbers -> (R,) ids. Functions of tensors alone, that never look at a value.
Choose = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Entry:
    """A text that waits to be written."""

    sample: int
    """What it is called in the tokens that are given."""
    prompt: Sequence[int]
    room: int
    """How many new tokens there may be."""
    uniform: Callable[[], float] | None = None
    """The next number of its own stream of chance, in [0, 1), one for each token; None where nothing is drawn."""


class Written(NamedTuple):
    """One token of one text."""

    sample: int
    id: int
    logprob: float
    """Under the model itself, before any filter; NaN where the model's logits are not finite."""
    finish_reason: str | None


@dataclass
class Text:
    """A text that has a row."""

    entry: Entry
    new: list[int] = field(default_factory=list)
    ahead: int = 0
    """Steps that were asked for, fetched or not."""
    is_over: bool = False

    @property
    def left(self) -> int:
        """Steps that may still be asked for."""
        return self.entry.room - self.ahead

    @property
    def end(self) -> int:
        """How many tokens the cache will hold once the room is full: the last one chosen is not read."""
        return len(self.entry.prompt) + self.entry.room - 1


def bucket_for(length: int, positions: int) -> int:
    """The smallest bucket that holds so many tokens; the largest there is are the model's positions."""
    bucket = SMALLEST_BUCKET
    while bucket < length:
        bucket *= 2
    return min(bucket, positions)


class Board:
    """All that a step reads and writes, at addresses that stay: the cache, and where each row stands.

    A row goes on as long as its length is under its limit. One that is over is computed like the others, and what
    comes of it is not looked at.
    """

    def __init__(self, model: GPT2, rows: int, capacity: int, steps: int) -> None:
        shape, self.device = model.shape, model.device
        # Zeros, not whatever memory held: a masked slot has no weight in attention, but nothing times NaN is NaN.
        self.cache = torch.zeros(
            *(shape.n_layer, 2, rows, shape.n_head, capacity, shape.n_embd // shape.n_head),
            device=self.device,
            dtype=model.dtype,
        )
        self.tokens = self._zeros(rows)  # to be read next
        self.lengths = self._zeros(rows)  # tokens in the cache
        self.limits = self._zeros(rows)  # the length at which the row is over
        self.step = self._zeros(1)  # of the chunk
        self.uniform = self._zeros(steps, rows, dtype=torch.float64)
        self.ids = self._zeros(steps, rows)
        self.logprobs = self._zeros(steps, rows, dtype=torch.float32)

    def begin(self, uniform: Tensor | None) -> None:
        """Before the steps of a chunk. (S, R) or None."""
        self.step.zero_()
        if uniform is not None:
            self.uniform[: len(uniform)] = uniform

    def seat(self, rows: Tensor, tokens: Tensor, lengths: Tensor, limits: Tensor) -> None:
        """Texts take these rows; each (N,)."""
        self.tokens[rows], self.lengths[rows], self.limits[rows] = tokens, lengths, limits

    def upload(self, values: Sequence[object], dtype: torch.dtype = torch.int64) -> Tensor:
        """Numbers to the device. Nobody waits for it."""
        return _pinned(torch.tensor(values, dtype=dtype), self.device).to(self.device, non_blocking=True)

    def _zeros(self, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)


class StepProgram:
    """One token more for every row of a board, over the first `bucket` slots of its cache.

    The same operations run one by one, on any device, or as a graph once they are captured.
    """

    def __init__(self, model: GPT2, board: Board, bucket: int, choose: Choose, end_ids: Collection[int]) -> None:
        self._model, self._board, self._bucket, self._choose = model, board, bucket, choose
        self._rows = torch.arange(len(board.tokens), device=board.device)
        self._slots = torch.arange(bucket, device=board.device)
        self._end_ids = board.upload(sorted(end_ids))
        self._graph: torch.cuda.CUDAGraph | None = None

    def run(self) -> None:
        """One step."""
        if self._graph is None:
            self._step()
        else:
            self._graph.replay()

    def capture(self, pool: object) -> None:
        """Have the step as a graph from now on; nothing is computed. The device is a CUDA GPU, and the current one, and
        steps were taken on it before, so that all libraries have set themselves up.

        Args:
            pool: of memory, for all the programs of a board: nothing in it is needed after a step.
        """
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on asking for memory, those of a data loader for instance.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self._step()
            self._graph = graph

    def _step(self) -> None:
        board = self._board
        goes_on = board.lengths < board.limits
        logits = self._logits(board.lengths.clamp(max=self._bucket - 1))
        # Of logits that are no numbers an index beyond the vocabulary may come, which would end all work on the GPU.
        chosen = self._choose(logits, board.uniform.index_select(0, board.step)[0])
        chosen = chosen.clamp(max=self._model.shape.vocab_size - 1)
        logprobs = logits.log_softmax(dim=1).gather(1, chosen[:, None])
        board.ids.index_copy_(0, board.step, chosen[None])
        board.logprobs.index_copy_(0, board.step, logprobs.t())
        board.tokens.copy_(chosen)
        board.lengths.add_(goes_on)
        ends = (chosen[:, None] == self._end_ids).any(dim=1)
        board.limits.copy_(board.limits.where(~ends, board.lengths))
        board.step.add_(1)

    def _logits(self, places: Tensor) -> Tensor:
        """Read the tokens at these places, (R,). Returns (R, V)."""
        cache = self._board.cache[..., : self._bucket, :]
        mask = torch.zeros(len(places), 1, 1, self._bucket, dtype=cache.dtype, device=cache.device)
        mask.masked_fill_((self._slots > places[:, None])[:, None, None], -torch.inf)

        def remember(layer: int, key: Tensor, value: Tensor) -> Attended:
            keys, values = cache[layer]
            keys[self._rows, :, places] = key[:, :, 0]
            values[self._rows, :, places] = value[:, :, 0]
            return keys, values, mask, False

        hidden = self._model.hidden(self._board.tokens[:, None], places[:, None], remember)
        return self._model.logits(hidden[:, 0])


class Chunk:
    """What some steps have written, on its way to the processor."""

    def __init__(self, board: Board, steps: int, texts: Sequence[Text | None]) -> None:
        self.texts = texts
        self._ids = _fetched(board.ids[:steps])
        self._logprobs = _fetched(board.logprobs[:steps])
        self._arrived: torch.cuda.Event | None = None
        if board.device.type == "cuda":
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def tokens(self) -> Iterator[tuple[int, Text, int, float]]:
        """Row, text, id and log-probability of every token, step by step. Waits until the steps are done."""
        if self._arrived is not None:
            self._arrived.synchronize()
        for ids, logprobs in zip(self._ids.tolist(), self._logprobs.tolist(), strict=True):
            for row, (text, token, logprob) in enumerate(zip(self.texts, ids, logprobs, strict=True)):
                if text is not None:
                    yield row, text, token, logprob


class ContinuousBatch:
    """Rows that are kept busy: where a text ends, the next one in the queue takes its row."""

    def __init__(
        self,
        model: GPT2,
        rows: int,
        capacity: int,
        choose: Choose,
        end_ids: Collection[int],
        steps: int = STEPS,
        captured: bool | None = None,
    ) -> None:
        """
        Args:
            rows: texts side by side.
            capacity: tokens of the longest text, rounded up to a bucket.
            choose: filters and choice of a token.
            end_ids: tokens that end a text.
            steps: how many tokens are written between two looks.
            captured: whether steps run as graphs; None is where the device is a CUDA GPU.
        """
        self._model, self._choose, self._end_ids, self._steps = model, choose, end_ids, steps
        self._captured = model.device.type == "cuda" if captured is None else captured
        with torch.inference_mode():
            self._board = Board(model, rows, bucket_for(capacity, model.shape.n_positions), steps)
        self._pool = torch.cuda.graph_pool_handle() if self._captured else None
        self._seats: list[Text | None] = [None] * rows
        self._programs: dict[int, StepProgram] = {}  # by bucket

    def write(self, entries: Iterable[Entry], finish: Callable[[int, Sequence[int]], str | None]) -> Iterator[Written]:
        """Write all texts. Steps are always asked for before the tokens of those before them are given.

        Args:
            entries: none with an empty prompt; taken from the iterable when a row is free.
            finish: takes a sample and its new ids, the newest last; why the text ends there, or None. It must find an
                end at an end token, and where the room is full.
        """
        queue = iter(entries)
        self._seats = [None] * len(self._seats)  # whatever rows go on with, nobody looks at it
        running: Chunk | None = None
        while True:
            self._take_seats(queue)
            following = self._launch()
            if running is not None:
                yield from self._settle(running, finish)
            elif following is None:
                return
            running = following

    @torch.inference_mode()
    def _take_seats(self, queue: Iterator[Entry]) -> None:
        """The next in the queue take the rows that are free."""
        free = [row for row, text in enumerate(self._seats) if text is None]
        # The rows first: what zip has taken from its first argument is lost when the second one ends.
        taken = {row: Text(entry) for row, entry in zip(free, queue, strict=False)}
        if not taken:
            return
        with self._current_device():
            self._read({row: tuple(text.entry.prompt[:-1]) for row, text in taken.items()})
            texts, upload = list(taken.values()), self._board.upload
            self._board.seat(
                upload(list(taken)),
                upload([text.entry.prompt[-1] for text in texts]),
                upload([len(text.entry.prompt) - 1 for text in texts]),
                upload([text.end for text in texts]),
            )
        for row, text in taken.items():
            self._seats[row] = text

    def _read(self, texts: dict[int, tuple[int, ...]]) -> None:
        """Put texts into the cache, by row; each is read once, however many rows it has."""
        rows: dict[tuple[int, ...], list[int]] = {}
        for row, ids in texts.items():
            if ids:
                rows.setdefault(ids, []).append(row)
        for piece in _pieces(sorted(rows, key=len)):
            self._read_piece(piece, [rows[ids] for ids in piece])

    def _read_piece(self, texts: Sequence[tuple[int, ...]], rows_of_each: Sequence[Sequence[int]]) -> None:
        board, longest = self._board, len(texts[-1])
        ids = board.upload([[*text, *[0] * (longest - len(text))] for text in texts])
        rows = board.upload([row for rows in rows_of_each for row in rows])
        sources = board.upload([source for source, rows in enumerate(rows_of_each) for _ in rows])

        def remember(layer: int, key: Tensor, value: Tensor) -> Attended:
            # Padding stands on the right, where the causal mask hides it from every token of the text.
            board.cache[layer, 0][rows, :, :longest] = key[sources]
            board.cache[layer, 1][rows, :, :longest] = value[sources]
            return key, value, None, True

        self._model.hidden(ids, torch.arange(longest, device=board.device).expand(len(texts), -1), remember)

    @torch.inference_mode()
    def _launch(self) -> Chunk | None:
        """Ask for the next steps of all texts that are not over; None if there are none. A text whose room will be
        full then gives up its row at once."""
        seated = [text for text in self._seats if text is not None]
        if not seated:
            return None
        steps = min(self._steps, max(text.left for text in seated))
        reach = max(text.end - max(0, text.left - steps) for text in seated)
        with self._current_device():
            program = self._program(bucket_for(reach, self._model.shape.n_positions))
            self._board.begin(self._uniform(steps))
            for _ in range(steps):
                program.run()
            chunk = Chunk(self._board, steps, list(self._seats))
        for row, text in enumerate(self._seats):
            if text is not None:
                text.ahead += steps
                if text.left <= 0:
                    self._seats[row] = None
        return chunk

    def _program(self, bucket: int) -> StepProgram:
        """The program of a bucket. Its first chunk is taken step by step: for a short text a capture would not pay."""
        program = self._programs.get(bucket)
        if program is None:
            program = StepProgram(self._model, self._board, bucket, self._choose, self._end_ids)
            self._programs[bucket] = program
        elif self._captured:
            program.capture(self._pool)
        return program

    def _uniform(self, steps: int) -> Tensor | None:
        """The numbers that the next steps draw with, (S, R); None if none of them draws."""
        sources = [None if text is None else text.entry.uniform for text in self._seats]
        if not any(sources):
            return None
        numbers = [[source() if source else 0.0 for source in sources] for _ in range(steps)]
        return self._board.upload(numbers, torch.float64)

    def _settle(self, chunk: Chunk, finish: Callable[[int, Sequence[int]], str | None]) -> Iterator[Written]:
        """The tokens of a chunk, without those beyond the end of a text. A text that ends leaves its row."""
        for row, text, token, logprob in chunk.tokens():
            if text.is_over:
                continue
            text.new.append(token)
            reason = finish(text.entry.sample, text.new)
            if reason is not None:
                text.is_over = True
                if self._seats[row] is text:
                    self._seats[row] = None
            yield Written(text.entry.sample, token, logprob, reason)

    def _current_device(self) -> torch.cuda.device | nullcontext[None]:
        return torch.cuda.device(self._model.device) if self._model.device.type == "cuda" else nullcontext()


def _pieces(texts: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Texts, the shortest first, in groups that are read at once."""
    piece: list[tuple[int, ...]] = []
    for text in texts:
        if piece and (len(piece) + 1) * len(text) > READ_AT_ONCE:
            yield piece
            piece = []
        piece.append(text)
    if piece:
        yield piece


def _pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """Where a CUDA GPU reads and writes it while the program goes on."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def _fetched(tensor: Tensor) -> Tensor:
    """A copy for the processor; on a CUDA GPU it is only on its way."""
    copy = _pinned(torch.empty(tensor.shape, dtype=tensor.dtype), tensor.device)
    return copy.copy_(tensor, non_blocking=True)
