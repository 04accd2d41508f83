"""A context in torch, for any device. Shapes as in model.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gpt2tg.engine.context import Context
from gpt2tg.engine.model import GPT2
from gpt2tg.engine.prefill import prefill_groups


class TorchContext(Context):
    """A KV cache that is allocated once, (layers, keys and values, B, H, C, D).

    Each row starts at slot 0, so that slots are positions. The slots beyond the end of a shorter row are masked until
    its own tokens overwrite them.
    """

    def __init__(self, model: GPT2, capacity: int, keep_hidden: bool = False) -> None:
        super().__init__(model, capacity, keep_hidden)
        self._cache = torch.empty(0)

    def _allocate(self, rows: int) -> None:
        shape = self._model.shape
        # Zeros: a masked slot has no weight in attention, but 0 * NaN, from uninitialised memory, is NaN.
        self._cache = torch.zeros(
            *(shape.n_layer, 2, rows, shape.n_head, self.capacity, shape.n_embd // shape.n_head),
            device=self._model.device,
            dtype=self._model.dtype,
        )

    @torch.inference_mode()
    def read(self, texts: Mapping[int, Sequence[int]]) -> Tensor:
        """See `Context.read`."""
        groups = list(prefill_groups(texts))
        read = [self._read_group({row: texts[row] for row in group}) for group in groups]
        order = [row for group in groups for row in group]
        places = [order.index(row) for row in texts]
        hidden = [states for _, of_group in read for states in of_group]
        self._hidden = [hidden[place] for place in places] if self._keep_hidden else []
        logits = [of_group for of_group, _ in read]
        return logits[0] if len(logits) == 1 else torch.cat(logits)[places]

    def _read_group(self, texts: Mapping[int, Sequence[int]]) -> tuple[Tensor, list[Tensor]]:
        """Prefill some rows in one forward pass.

        Returns:
            (G, V) logits of the next token of these G rows, and the final hidden states (T, W) of each.
        """
        model = self._model
        rows = list(texts)
        lengths = [len(text) for text in texts.values()]
        longest = max(lengths)
        padded = [[*text, *[0] * (longest - len(text))] for text in texts.values()]
        positions = torch.arange(longest, device=model.device).expand(len(rows), -1)

        at = torch.tensor(rows, device=model.device)

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            # Padding is on the right, where the causal mask hides it from every token of the text.
            self._cache[layer, 0, at, :, :longest] = key
            self._cache[layer, 1, at, :, :longest] = value
            return model.causal_attention(layer, query, key, value)

        hidden = model.hidden(torch.tensor(padded, device=model.device), positions, attend)
        for row, text in texts.items():
            self._ids[row] = list(text)
        last = torch.tensor(lengths, device=model.device) - 1
        states = [hidden[place, :length] for place, length in enumerate(lengths)] if self._keep_hidden else []
        return model.logits(hidden[torch.arange(len(rows)), last]), states

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """See `Context.step`."""
        model = self._model
        lengths = torch.tensor(self.lengths, device=model.device)  # (B,)
        longest = max(self.lengths) + 1
        is_even = min(self.lengths) == longest - 1
        mask = None if is_even else (torch.arange(longest, device=model.device) <= lengths[:, None])[:, None, None]
        rows = torch.arange(len(lengths), device=model.device)

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = self._cache[layer]
            if is_even:
                keys[:, :, longest - 1] = key[:, :, 0]
                values[:, :, longest - 1] = value[:, :, 0]
            else:
                keys[rows, :, lengths] = key[:, :, 0]
                values[rows, :, lengths] = value[:, :, 0]
            return model.attention(layer, query, keys[:, :, :longest], values[:, :, :longest], mask)

        hidden = model.hidden(tokens.to(model.device)[:, None], lengths[:, None], attend)
        for ids, token in zip(self._ids, tokens.tolist(), strict=True):
            ids.append(token)
        if self._keep_hidden:
            self._hidden = list(hidden)
        return model.logits(hidden[:, 0])

    @torch.inference_mode()
    def extend(self, tokens: Mapping[int, Sequence[int]], every: bool = True) -> Tensor:
        """See `Context.extend`. One row after another is read."""
        return torch.cat([self._extend_row(row, ids, every) for row, ids in tokens.items()])

    def _extend_row(self, row: int, tokens: Sequence[int], every: bool) -> Tensor:
        model, held = self._model, len(self._ids[row])
        end = held + len(tokens)
        positions = torch.arange(held, end, device=model.device)
        mask = (torch.arange(end, device=model.device) <= positions[:, None])[None, None]

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = self._cache[layer, :, row : row + 1]
            keys[:, :, held:end] = key
            values[:, :, held:end] = value
            return model.attention(layer, query, keys[:, :, :end], values[:, :, :end], mask)

        hidden = model.hidden(torch.tensor([list(tokens)], device=model.device), positions[None], attend)
        self._ids[row] += tokens
        return model.logits(hidden[0] if every else hidden[0, -1:])

    @torch.inference_mode()
    def select(self, rows: Sequence[int]) -> None:
        """See `Context.select`. If the number of rows stays, only the rows that change are copied, up to the longest
        length."""
        filled = max(self.lengths)
        if len(rows) == len(self._ids):
            changed = [row for row, source in enumerate(rows) if source != row]
            if changed:
                targets, sources = torch.tensor([changed, [rows[row] for row in changed]], device=self._cache.device)
                self._cache[:, :, targets, :, :filled] = self._cache[:, :, sources, :, :filled]
        else:
            self._rearrange(rows, filled)
        self._ids = [list(self._ids[row]) for row in rows]

    def _rearrange(self, rows: Sequence[int], filled: int) -> None:
        """Make a cache of another number of rows from the first slots of these rows."""
        kept = self._cache.new_zeros(*self._cache.shape[:2], len(rows), *self._cache.shape[3:])
        kept[:, :, :, :, :filled] = self._cache[:, :, list(rows), :, :filled]
        self._cache = kept
