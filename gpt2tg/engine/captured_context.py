"""A context whose decode steps are captured as CUDA graphs. Shapes as in model.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gpt2tg.engine.cuda_graph import GraphedStep, current_device
from gpt2tg.engine.model import GPT2
from gpt2tg.engine.step_cache import StepCache
from gpt2tg.engine.torch_context import TorchContext
from gpt2tg.engine.upload import upload


class CapturedContext(TorchContext):
    """A TorchContext for a CUDA GPU: the forward pass of a decode step is a graph, for each number of rows and bucket.

    Whatever happens between two steps, filters and beam search, runs as with any other context. The cache stays at its
    address: rows that are dropped leave their memory unused.
    """

    def __init__(self, model: GPT2, capacity: int, keep_hidden: bool = False) -> None:
        super().__init__(model, capacity, keep_hidden)
        self._step_cache: StepCache
        self._steps: dict[tuple[int, int], ForwardStep] = {}  # by rows and bucket
        self._pool = torch.cuda.graph_pool_handle() if model.graph_capture.is_on else None

    def _allocate(self, rows: int) -> None:
        self._steps = {}
        self._step_cache = StepCache(self._model, rows, self.capacity)
        self._cache = self._step_cache.tensor

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """See `Context.step`."""
        ids, lengths = tokens.tolist(), self.lengths
        forward = self._forward_step(len(ids), max(lengths) + 1)
        forward.inputs.copy_(upload([ids, lengths], self._model.device))
        with current_device(self._model.device):
            forward.run(ahead=self.capacity - max(lengths))
        for held, token in zip(self._ids, ids, strict=True):
            held.append(token)
        if self._keep_hidden:
            self._hidden = list(forward.hidden.clone()[:, None])
        return forward.logits.clone()

    def _forward_step(self, rows: int, length: int) -> ForwardStep:
        """Return the step of so many rows, of which the longest will have so many tokens."""
        key = rows, self._step_cache.bucket(length)
        if key not in self._steps:
            self._steps[key] = ForwardStep(self._model, self._step_cache, *key, self._pool)
        return self._steps[key]

    def _rearrange(self, rows: Sequence[int], filled: int) -> None:
        """Copy in place as long as there is memory for so many rows."""
        cache = self._cache
        if len(rows) <= cache.shape[2]:
            cache[:, :, : len(rows), :, :filled] = cache[:, :, upload(rows, cache.device), :, :filled]
            return
        self._allocate(len(rows))
        self._cache[:, :, :, :, :filled] = cache[:, :, upload(rows, cache.device), :, :filled]


class ForwardStep(GraphedStep):
    """The forward pass that reads one token of every row."""

    def __init__(
        self, model: GPT2, cache: StepCache, rows: int, bucket: int, pool: torch.cuda._POOL_HANDLE | None
    ) -> None:
        super().__init__(model.graph_capture, pool)
        self._model, self._cache, self._bucket = model, cache, bucket
        shape, device = model.shape, model.device
        self.inputs = torch.zeros(2, rows, dtype=torch.int64, device=device)
        """The tokens to read, and the lengths of the rows before."""
        self.hidden = torch.zeros(rows, shape.n_embd, dtype=model.dtype, device=device)
        """(B, W) states after the final layer norm. The next run overwrites them."""
        self.logits = torch.zeros(rows, shape.vocab_size, dtype=torch.float32, device=device)
        """(B, V) of the next tokens. The next run overwrites them."""

    def _step(self) -> None:
        tokens, lengths = self.inputs
        hidden = self._cache.hidden(tokens, lengths, self._bucket)
        self.hidden.copy_(hidden)
        self.logits.copy_(self._model.logits(hidden))
