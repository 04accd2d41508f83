"""Decode steps without a host sync: each reads one token of every row, chooses the next one and stores it.

All is done on the device, with shapes that never change. So on a CUDA GPU a step can be captured as a graph, and
replayed many times before the tokens are fetched. Shapes as in model.py; S steps of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from gpt2tg.engine.cuda_graph import GraphCapture, GraphedStep
from gpt2tg.engine.model import GPT2
from gpt2tg.engine.step_cache import StepCache
from gpt2tg.engine.upload import upload

# (B, V) logits and (B,) uniform numbers -> (B,) ids. May only compute with tensors: reading a value is a host sync.
ChooseOnDevice = Callable[[Tensor, Tensor], Tensor]


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
        self.device = model.device
        self.cache = StepCache(model, rows, capacity)
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

    def _zeros(self, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)


class DecodeStep(GraphedStep):
    """One more token for every row. No row may have `bucket` tokens or more."""

    def __init__(
        self,
        model: GPT2,
        buffers: StepBuffers,
        bucket: int,
        choose: ChooseOnDevice,
        end_ids: Collection[int],
        capture: GraphCapture,
    ) -> None:
        super().__init__(capture)
        self._model, self._buffers, self._bucket, self._choose = model, buffers, bucket, choose
        self._end_ids = upload(sorted(end_ids), buffers.device)

    def _step(self) -> None:
        buffers = self._buffers
        is_active = buffers.lengths < buffers.limits
        positions = buffers.lengths.clamp(max=self._bucket - 1)
        hidden = buffers.cache.hidden(buffers.tokens[:, None], positions, self._bucket)
        logits = self._model.logits(hidden[:, 0])
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
