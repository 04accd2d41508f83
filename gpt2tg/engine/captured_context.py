"""A context whose decode steps are captured as CUDA graphs. Shapes as in model.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gpt2tg.engine.cuda_graph import GraphedStep, current_device
from gpt2tg.engine.model import GPT2
from gpt2tg.engine.step_cache import StepCache, bucket_for
from gpt2tg.engine.torch_context import TorchContext
from gpt2tg.engine.upload import pinned, upload


class CapturedContext(TorchContext):
    """A TorchContext for a CUDA GPU: the forward pass of a decode step is a graph.

    Whatever happens between two steps, filters and beam search, runs as with any other context. Cache and graphs stay
    until more rows are needed: rows that are dropped leave their memory unused. A graph reads a power of two of rows.
    Those beyond the last one are computed too, as rows without tokens, and ignored.
    """

    _step_cache: StepCache
    _hidden_states: Tensor
    _logits: Tensor

    def __init__(self, model: GPT2, capacity: int, keep_hidden: bool = False) -> None:
        super().__init__(model, capacity, keep_hidden)
        self._steps: dict[tuple[int, int], ForwardStep] = {}  # by rows and bucket

    def _allocate(self, rows: int) -> None:
        model, shape = self._model, self._model.shape
        self._steps = {}
        self._step_cache = StepCache(model, rows, bucket_for(self.capacity, shape.n_positions))
        self._cache = self._step_cache.tensor
        self._hidden_states = torch.zeros(rows, shape.n_embd, dtype=model.dtype, device=model.device)
        self._logits = torch.zeros(rows, shape.vocab_size, dtype=torch.float32, device=model.device)

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """See `Context.step`.

        Raises:
            ValueError: a row is full.
        """
        ids, lengths, device = tokens.tolist(), self.lengths, self._model.device
        if (longest := max(lengths)) >= self.capacity:
            raise ValueError(f"a row has {longest} tokens, and the cache is for {self.capacity}")
        forward = self._forward_step(len(ids), longest + 1)
        surplus = [0] * (forward.inputs.shape[1] - len(ids))
        inputs = torch.tensor([ids + surplus, lengths + surplus])
        forward.inputs.copy_(pinned(inputs, device), non_blocking=True)
        with current_device(device):
            forward.run(ahead=self.capacity - longest)
        for held, token in zip(self._ids, ids, strict=True):
            held.append(token)
        if self._keep_hidden:
            self._hidden = list(self._hidden_states[: len(ids), None].clone())
        return self._logits[: len(ids)].clone()

    def _forward_step(self, rows: int, length: int) -> ForwardStep:
        """Return a step for so many rows, of which the longest will have so many tokens."""
        rows = min(1 << (rows - 1).bit_length(), len(self._logits))
        key = rows, self._step_cache.bucket(length)
        if key not in self._steps:
            results = self._hidden_states[:rows], self._logits[:rows]
            self._steps[key] = ForwardStep(self._model, self._step_cache, key[1], *results)
        return self._steps[key]

    def _rearrange(self, rows: Sequence[int], filled: int) -> None:
        """Copy in place as long as there is memory for so many rows."""
        cache = self._cache
        if len(rows) > len(self._logits):
            self._allocate(len(rows))
        self._cache[:, :, : len(rows), :, :filled] = cache[:, :, upload(rows, cache.device), :, :filled]


class ForwardStep(GraphedStep):
    """The forward pass that reads one token of every row."""

    def __init__(self, model: GPT2, cache: StepCache, bucket: int, hidden: Tensor, logits: Tensor) -> None:
        """
        Args:
            hidden: (B, W) where the states after the final layer norm are written.
            logits: (B, V) where the logits of the next tokens are written.
        """
        super().__init__(model.graph_capture)
        self._model, self._cache, self._bucket, self._hidden, self._logits = model, cache, bucket, hidden, logits
        self.inputs = torch.zeros(2, len(logits), dtype=torch.int64, device=model.device)
        """The tokens to read, and the lengths of the rows before."""

    def _step(self) -> None:
        tokens, lengths = self.inputs
        hidden = self._cache.hidden(tokens, lengths, self._bucket)
        self._hidden.copy_(hidden)
        self._logits.copy_(self._model.logits(hidden))
