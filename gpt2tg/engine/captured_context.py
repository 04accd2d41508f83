"""A context whose forward passes after the prompt are captured as CUDA graphs. Shapes as in model.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gpt2tg.engine.cuda_graph import GraphedStep, current_device
from gpt2tg.engine.model import GPT2
from gpt2tg.engine.step_cache import StepCache, bucket_for
from gpt2tg.engine.torch_context import TorchContext
from gpt2tg.engine.upload import pinned, upload


class CapturedContext(TorchContext):
    """A TorchContext for a CUDA GPU: a forward pass that reads one token of every row, or a few, is a graph.

    Whatever happens between two of them, filters and beam search, runs as with any other context. Cache and graphs stay
    until more rows are needed: rows that are dropped leave their memory unused. A graph reads powers of two of rows and
    of tokens. Rows and tokens beyond the last ones are computed too, and ignored.
    """

    _step_cache: StepCache

    def __init__(self, model: GPT2, capacity: int, keep_hidden: bool = False) -> None:
        super().__init__(model, capacity, keep_hidden)
        self._rows = 0  # that the cache has
        self._steps: dict[tuple[int, int, int], ForwardStep] = {}  # by rows, tokens of a row, and bucket
        self._results: dict[int, tuple[Tensor, Tensor]] = {}  # states and logits of all rows, by tokens of a row

    def _allocate(self, rows: int) -> None:
        if rows <= self._rows:
            self._cache.zero_()
            return
        self._steps, self._results = {}, {}
        self._rows = rows
        self._step_cache = StepCache(self._model, rows, bucket_for(self.capacity, self._model.shape.n_positions))
        self._cache = self._step_cache.tensor

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """See `Context.step`.

        Raises:
            ValueError: a row is full.
        """
        ids = tokens.tolist()
        if (longest := max(self.lengths)) >= self.capacity:
            raise ValueError(f"a row has {longest} tokens, and the cache is for {self.capacity}")
        hidden, logits = self._read_new([[token] for token in ids])
        for held, token in zip(self._ids, ids, strict=True):
            held.append(token)
        if self._keep_hidden:
            self._hidden = list(hidden.clone())
        return logits[:, 0].clone()

    @torch.inference_mode()
    def extend(self, tokens: Mapping[int, Sequence[int]], every: bool = True) -> Tensor:
        """See `Context.extend`. All rows are read in one forward pass, padded to equal numbers of tokens."""
        most = 1 << (max(map(len, tokens.values())) - 1).bit_length()
        if max(self.lengths) + most > self._step_cache.capacity:  # no room for the padding
            return super().extend(tokens, every)
        padded = [[*tokens.get(row, ()), *[0] * (most - len(tokens.get(row, ())))] for row in range(len(self._ids))]
        _, logits = self._read_new(padded)
        for row, added in tokens.items():
            self._ids[row] += added
        return torch.cat([logits[row, 0 if every else len(added) - 1 : len(added)] for row, added in tokens.items()])

    def _read_new(self, tokens: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Read T tokens of each of the N rows, by a graph if that pays.

        Returns:
            (N, T, W) states and (N, T, V) logits, which the next call overwrites.
        """
        lengths, device, new = self.lengths, self._model.device, len(tokens[0])
        longest, rows = max(lengths), len(lengths)
        forward = self._forward_step(rows, new, longest + new)
        surplus = forward.inputs.shape[1] - rows
        inputs = torch.tensor([[*of_rows, *[0] * surplus] for of_rows in (lengths, *zip(*tokens, strict=True))])
        forward.inputs.copy_(pinned(inputs, device), non_blocking=True)
        with current_device(device):
            forward.run(ahead=(self.capacity - longest) // new)
        hidden, logits = self._results[new]
        return hidden[:rows], logits[:rows]

    def _forward_step(self, rows: int, new: int, length: int) -> ForwardStep:
        """Return a step that reads so many new tokens of so many rows, of which the longest will have `length`."""
        rows = min(1 << (rows - 1).bit_length(), self._rows)
        key = rows, new, self._step_cache.bucket(length, new)
        if key not in self._steps:
            if new not in self._results:
                self._results[new] = self._new_results(new)
            hidden, logits = self._results[new]
            self._steps[key] = ForwardStep(self._model, self._step_cache, key[2], hidden[:rows], logits[:rows])
        return self._steps[key]

    def _new_results(self, new: int) -> tuple[Tensor, Tensor]:
        model, shape, places = self._model, self._model.shape, (self._rows, new)
        hidden = torch.zeros(*places, shape.n_embd, dtype=model.dtype, device=model.device)
        return hidden, torch.zeros(*places, shape.vocab_size, dtype=torch.float32, device=model.device)

    def _rearrange(self, rows: Sequence[int], filled: int) -> None:
        """Copy in place as long as there is memory for so many rows."""
        cache = self._cache
        if len(rows) > self._rows:
            self._allocate(len(rows))
        self._cache[:, :, : len(rows), :, :filled] = cache[:, :, upload(rows, cache.device), :, :filled]


class ForwardStep(GraphedStep):
    """The forward pass that reads T tokens of every row."""

    def __init__(self, model: GPT2, cache: StepCache, bucket: int, hidden: Tensor, logits: Tensor) -> None:
        """
        Args:
            hidden: (B, T, W) where the states after the final layer norm are written.
            logits: (B, T, V) where the logits of the token after each are written.
        """
        super().__init__(model.graph_capture)
        self._model, self._cache, self._bucket, self._hidden, self._logits = model, cache, bucket, hidden, logits
        rows, new, _ = logits.shape
        self.inputs = torch.zeros(1 + new, rows, dtype=torch.int64, device=model.device)
        """The lengths of the rows before, and the tokens to read, (T, B)."""

    def _step(self) -> None:
        lengths, tokens = self.inputs[0], self.inputs[1:].t()
        hidden = self._cache.hidden(tokens, lengths, self._bucket)
        self._hidden.copy_(hidden)
        self._logits.copy_(self._model.logits(hidden.flatten(0, 1)).view_as(self._logits))
