"""Decode steps without a host sync: static buffers, and CUDA graphs that are captured once and replayed.

A step reads one token of every row, chooses the next one and stores it, all on the device, with shapes that never
change. So on a CUDA GPU it can be captured as a graph and replayed many times before the tokens are fetched. Shapes as
in model.py; S steps of a chunk.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from gpt2tg.engine.model import GPT2, Attended
from gpt2tg.errors import one_line
from gpt2tg.io.streams import notice

# Environment variable; 0 turns CUDA graphs off.
SWITCH = "GPT2TG_GRAPHS"

# Steps that run before one is captured: in the first ones, libraries initialise themselves, which cannot be captured.
WARM_STEPS = 2

# A capture takes about as long as so many steps that run one by one. It must save at least as many.
STEPS_OF_A_CAPTURE = 4

# Attention reads the first slots of the cache, as many as the longest row needs, rounded up to this number, twice this
# number, and so on. Each of these sizes, a bucket, has a graph of its own.
SMALLEST_BUCKET = 128

# (B, V) logits and (B,) uniform numbers -> (B,) ids. May only compute with tensors: reading a value is a host sync.
ChooseOnDevice = Callable[[Tensor, Tensor], Tensor]


def bucket_for(length: int, positions: int) -> int:
    """Return the smallest bucket that holds so many tokens; at most the model's positions."""
    bucket = SMALLEST_BUCKET
    while bucket < length:
        bucket *= 2
    return min(bucket, positions)


class StepBuffers:
    """All that a step reads and writes, at fixed addresses: the KV cache and the state of each row.

    A row is active while its length is below its limit. An inactive row is computed too, and its result ignored.
    """

    def __init__(self, model: GPT2, rows: int, capacity: int, steps: int) -> None:
        """
        Args:
            capacity: tokens of the longest row.
            steps: the steps of the longest chunk.
        """
        shape, self.device = model.shape, model.device
        # Zeros: a masked slot has no weight in attention, but 0 * NaN, from uninitialised memory, is NaN.
        self.cache = torch.zeros(
            *(shape.n_layer, 2, rows, shape.n_head, capacity, shape.n_embd // shape.n_head),
            device=self.device,
            dtype=model.dtype,
        )
        self.tokens = self._zeros(rows)  # to be read next
        self.lengths = self._zeros(rows)  # tokens in the cache
        self.limits = self._zeros(rows)  # the length at which the row becomes inactive
        self.step = self._zeros(1)  # number of the step in its chunk
        self.uniform = self._zeros(steps, rows, dtype=torch.float64)
        self.ids = self._zeros(steps, rows)
        self.logprobs = self._zeros(steps, rows, dtype=torch.float32)

    def begin_chunk(self, uniform: Tensor | None) -> None:
        """Start a chunk of steps.

        Args:
            uniform: (S, B) random numbers of the steps; None if nothing is drawn.
        """
        self.step.zero_()
        if uniform is not None:
            self.uniform[: len(uniform)] = uniform

    def assign(self, rows: Tensor, tokens: Tensor, lengths: Tensor, limits: Tensor) -> None:
        """Set the state of some rows. The arguments have one number for each of them."""
        self.tokens[rows], self.lengths[rows], self.limits[rows] = tokens, lengths, limits

    def upload(self, values: Sequence[object], dtype: torch.dtype = torch.int64) -> Tensor:
        """Copy numbers to the device without waiting for it."""
        return pinned(torch.tensor(values, dtype=dtype), self.device).to(self.device, non_blocking=True)

    def _zeros(self, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)


class GraphCapture:
    """Captures CUDA graphs for one model, one after the other, until a capture fails.

    `torch.cuda.graph` would use one stream for all devices, would stay on it after an error, and would return all
    cached memory to the driver, from which the next prompt has to ask for it again.
    """

    def __init__(self, device: torch.device, is_on: bool | None = None) -> None:
        """
        Args:
            is_on: whether anything is captured; None means on a CUDA GPU, unless the user has turned graphs off.
        """
        self.is_on = device.type == "cuda" and os.environ.get(SWITCH) != "0" if is_on is None else is_on
        """False also after a capture has failed."""
        self._device = device
        self._stream: torch.cuda.Stream | None = None

    def graph_of(self, step: Callable[[], None], pool: torch.cuda._POOL_HANDLE | None) -> torch.cuda.CUDAGraph | None:
        """Capture what a function launches. The device must be the current CUDA device.

        Returns:
            The graph; None if it could not be captured, of which a line is printed.

        Raises:
            torch.OutOfMemoryError: there is no memory for the graph.
        """
        try:
            try:
                return self._graph_of(step, pool)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()  # during a capture torch cannot free what it has cached
                return self._graph_of(step, pool)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.is_on = False
            notice(f"no CUDA graphs: {one_line(error)}. Texts are generated step by step, which is slower.")
            return None

    def _graph_of(self, step: Callable[[], None], pool: torch.cuda._POOL_HANDLE | None) -> torch.cuda.CUDAGraph:
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]  # torch does not annotate it
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            # Other threads, such as those of a data loader, may allocate memory meanwhile.
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                step()
            except BaseException:
                with contextlib.suppress(RuntimeError):  # the first error says what is wrong
                    graph.capture_end()
                raise
            graph.capture_end()
        return graph


class DecodeStep:
    """One more token for every row, with attention over the first `bucket` slots of the cache.

    The operations run one by one, on any device, or as a graph once they are captured.
    """

    def __init__(
        self, model: GPT2, buffers: StepBuffers, bucket: int, choose: ChooseOnDevice, end_ids: Collection[int]
    ) -> None:
        self._model, self._buffers, self._bucket, self._choose = model, buffers, bucket, choose
        self._rows = torch.arange(len(buffers.tokens), device=buffers.device)
        self._slots = torch.arange(bucket, device=buffers.device)
        self._end_ids = buffers.upload(sorted(end_ids))
        self._graph: torch.cuda.CUDAGraph | None = None
        self._warm_steps = 0  # run without a graph

    def run(self) -> None:
        """Run the step once."""
        if self._graph is None:
            self._step()
            self._warm_steps += 1
        else:
            self._graph.replay()

    def is_worth_capturing(self, ahead: int) -> bool:
        """Whether a capture can work, and saves more time than it takes, if so many more steps are certain.

        Steps that ran before count too: more are likely to follow then.
        """
        warm = self._warm_steps
        return self._graph is None and warm >= WARM_STEPS and warm + ahead >= WARM_STEPS + STEPS_OF_A_CAPTURE

    def capture(self, capture: GraphCapture, pool: torch.cuda._POOL_HANDLE | None) -> None:
        """Capture the step as a graph, which `run` replays from now on. Nothing is computed.

        If that fails, `run` goes on step by step.

        Args:
            pool: the memory pool that all graphs of these buffers share; nothing in it outlives a step.
        """
        self._graph = capture.graph_of(self._step, pool)

    def _step(self) -> None:
        buffers = self._buffers
        is_active = buffers.lengths < buffers.limits
        logits = self._logits(buffers.lengths.clamp(max=self._bucket - 1))
        # From NaN logits an index beyond the vocabulary may be chosen, which would stop all work on the GPU.
        chosen = self._choose(logits, buffers.uniform.index_select(0, buffers.step)[0])
        chosen = chosen.clamp(max=self._model.shape.vocab_size - 1)
        logprobs = logits.log_softmax(dim=1).gather(1, chosen[:, None])
        buffers.ids.index_copy_(0, buffers.step, chosen[None])
        buffers.logprobs.index_copy_(0, buffers.step, logprobs.t())
        buffers.tokens.copy_(chosen)
        buffers.lengths.add_(is_active)
        ends = (chosen[:, None] == self._end_ids).any(dim=1)
        buffers.limits.copy_(buffers.limits.where(~ends, buffers.lengths))
        buffers.step.add_(1)

    def _logits(self, positions: Tensor) -> Tensor:
        """Read the next token of each row at these positions, (B,). Returns (B, V)."""
        cache = self._buffers.cache[..., : self._bucket, :]
        mask = torch.zeros(len(positions), 1, 1, self._bucket, dtype=cache.dtype, device=cache.device)
        mask.masked_fill_((self._slots > positions[:, None])[:, None, None], -torch.inf)

        def remember(layer: int, key: Tensor, value: Tensor) -> Attended:
            keys, values = cache[layer]
            keys[self._rows, :, positions] = key[:, :, 0]
            values[self._rows, :, positions] = value[:, :, 0]
            return keys, values, mask, False

        hidden = self._model.hidden(self._buffers.tokens[:, None], positions[:, None], remember)
        return self._model.logits(hidden[:, 0])


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor in page-locked memory if the device is a CUDA GPU, which then copies it asynchronously."""
    return tensor.pin_memory() if device.type == "cuda" else tensor
