"""CUDA graphs: operations that are captured once and replayed, so that the GPU does not wait for Python to launch them.

A graph repeats the same operations on the same addresses. So it can only hold what waits for no value of the GPU, and
writes its results into buffers.
"""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from gpt2tg.errors import one_line
from gpt2tg.io.streams import notice

# Environment variable; 0 turns CUDA graphs off, and our attention kernel.
SWITCH = "GPT2TG_GRAPHS"

# Steps that run before one is captured: in the first ones, libraries initialise themselves, which cannot be captured.
WARM_STEPS = 2

# A capture takes about as long as so many steps that run one by one. It must save at least as many.
STEPS_OF_A_CAPTURE = 4


def is_switched_off() -> bool:
    """Whether the user has turned CUDA graphs off."""
    return os.environ.get(SWITCH) == "0"


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """Make a CUDA device the current one within a block: captures and our kernels run there."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


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
        self.is_on = device.type == "cuda" and not is_switched_off() if is_on is None else is_on
        """False also after a capture has failed."""
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._first: torch.cuda.CUDAGraph | None = None
        """Kept, so that its memory pool is, which all graphs share: nothing in it outlives a step. torch cannot capture
        into a pool again whose last graph is gone, and does not return its memory."""

    def graph_of(self, step: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """Capture what a function launches. The device must be the current CUDA device.

        Returns:
            The graph; None if it could not be captured, of which a line is printed.

        Raises:
            torch.OutOfMemoryError: there is no memory for the graph.
        """
        try:
            with contextlib.suppress(torch.OutOfMemoryError):
                return self._graph_of(step)
            torch.cuda.empty_cache()  # during a capture torch cannot free what it has cached
            return self._graph_of(step)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.is_on = False
            notice(f"no CUDA graphs: {one_line(error)}. Texts are generated step by step, which is slower.")
            return None

    def _graph_of(self, step: Callable[[], None]) -> torch.cuda.CUDAGraph:
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]  # torch does not annotate it
        graph = torch.cuda.CUDAGraph()
        pool = None if self._first is None else self._first.pool()
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
        self._first = self._first or graph
        return graph


class GraphedStep(ABC):
    """Operations on buffers at fixed addresses. They run one by one, on any device, or as a graph once captured.

    All memory that they allocate is free again at their end: the results are in the buffers.
    """

    def __init__(self, capture: GraphCapture) -> None:
        self._capture = capture
        self._graph: torch.cuda.CUDAGraph | None = None
        self._warm_steps = 0  # run without a graph

    @abstractmethod
    def _step(self) -> None:
        """Launch the operations."""

    def run(self, ahead: int) -> None:
        """Run the step once. It is captured before if that pays; if a capture fails, it runs without a graph.

        Args:
            ahead: how many runs are certain or likely, this one included.
        """
        if self._capture.is_on and self._is_worth_capturing(ahead):
            self.capture()
        if self._graph is None:
            self._step()
            self._warm_steps += 1
        else:
            self._graph.replay()

    def _is_worth_capturing(self, ahead: int) -> bool:
        """Whether a capture can work, and saves more time than it takes.

        Steps that ran before count too: more are likely to follow then.
        """
        warm = self._warm_steps
        return self._graph is None and warm >= WARM_STEPS and warm + ahead >= WARM_STEPS + STEPS_OF_A_CAPTURE

    def capture(self) -> None:
        """Capture the step as a graph, which `run` replays from now on. Nothing is computed."""
        self._graph = self._capture.graph_of(self._step)
