"""A context whose steps are taken by our own kernels, and whose rows share what they have in common.

Letters in shapes as in model.py; R rows of the cache, of which each text uses as many as its history needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gpt2tg.engine import kernels
from gpt2tg.engine.linear import Panels
from gpt2tg.engine.model import GPT2, Context

_STEPPERS: WeakKeyDictionary[GPT2, Stepper] = WeakKeyDictionary()


def stepper_of(model: GPT2) -> Stepper | None:
    """What steps through this model in kernels; None if its matrices are not laid out for them."""
    if not all(isinstance(matrix, Panels) for matrix in model.matrices.values()):
        return None
    if model not in _STEPPERS:
        _STEPPERS[model] = Stepper(model)
    return _STEPPERS[model]


class Stepper:
    """A model as the kernels are given it."""

    def __init__(self, model: GPT2) -> None:
        library = kernels.load()
        assert library is not None, "panels were made with it"
        self._library = library
        self.model = model
        shape = model.shape
        self._layers = (kernels.Layer * shape.n_layer)(*(self._layer(layer) for layer in range(shape.n_layer)))
        self._structure = kernels.Model(
            layers=self._layers,
            positions=self._numbers("wpe.weight"),
            norm_weight=self._numbers("ln_f.weight"),
            norm_bias=self._numbers("ln_f.bias"),
            embedding=self._matrix("wte"),
            head=self._matrix("wte" if shape.tied else "lm_head"),
            depth=shape.n_layer,
            width=shape.n_embd,
            heads=shape.n_head,
            activation=kernels.ACTIVATIONS[shape.activation],
            epsilon=shape.epsilon,
        )
        self._scratch = torch.empty(0)

    def _layer(self, layer: int) -> kernels.Layer:
        name = f"h.{layer}"
        return kernels.Layer(
            norm_1_weight=self._numbers(f"{name}.ln_1.weight"),
            norm_1_bias=self._numbers(f"{name}.ln_1.bias"),
            norm_2_weight=self._numbers(f"{name}.ln_2.weight"),
            norm_2_bias=self._numbers(f"{name}.ln_2.bias"),
            attend=self._matrix(f"{name}.attn.c_attn"),
            attended=self._matrix(f"{name}.attn.c_proj"),
            up=self._matrix(f"{name}.mlp.c_fc"),
            down=self._matrix(f"{name}.mlp.c_proj"),
            scale=self.model.attention_scale(layer),
        )

    def _numbers(self, name: str) -> int | None:
        return kernels.pointer(self.model.weights[name])

    def _matrix(self, name: str) -> kernels.Matrix:
        matrix = self.model.matrices[name]
        assert isinstance(matrix, Panels)
        return matrix.structure()

    def step(
        self, cache: Tensor, tokens: Tensor, positions: Tensor, origins: Tensor, wanted: Tensor, hidden: Tensor | None
    ) -> Tensor:
        """Read M tokens; `step` in kernels.c says what is what.

        Args:
            cache: (layers, 2, R, H, C, D); the keys and values of the tokens are written to it.
            tokens, positions: (M,) 32-bit.
            origins: (M, C) 32-bit.
            wanted: (W,) 32-bit.
            hidden: (M, E) to be filled, or None.

        Returns:
            (W, V) logits after the items that are wanted.
        """
        shape, items, threads = self.model.shape, len(tokens), torch.get_num_threads()
        capacity = cache.shape[4]
        shared = items * (3 * shape.n_embd + max(3 * shape.n_embd, shape.n_inner))
        room = shared + threads * (items * shape.n_embd + capacity)
        if len(self._scratch) < room:
            self._scratch = torch.empty(room)
        logits = torch.empty(len(wanted), shape.vocab_size)
        self._library.step(
            self._structure,
            kernels.Cache(kernels.pointer(cache), cache.shape[2], capacity),
            items,
            *map(kernels.pointer, (tokens, positions, origins)),
            len(wanted),
            *map(kernels.pointer, (wanted, logits, hidden, self._scratch)),
            threads,
        )
        return logits


class KernelContext(Context):
    """A context that never copies what rows have in common.

    Each row notes for every position which row of the cache holds it, its origins. Rows that part, beams or samples
    of one prompt, share the origins of what they have in common, and write on to a row of the cache of their own.
    """

    def __init__(self, stepper: Stepper, capacity: int, keep_hidden: bool = False) -> None:
        super().__init__(stepper.model, capacity, keep_hidden)
        self._stepper = stepper
        self._origins = torch.empty(0)  # (B, C) 32-bit; beyond a row's end, the row of the cache that it writes to
        self._slots: list[int] = []  # for each row, the row of the cache that it writes to

    def _allocate(self, rows: int) -> None:
        shape = self._model.shape
        self._cache = torch.empty(shape.n_layer, 2, rows, shape.n_head, self.capacity, shape.n_embd // shape.n_head)
        self._slots = list(range(rows))
        self._origins = torch.arange(rows, dtype=torch.int32)[:, None].repeat(1, self.capacity)

    def _slots_for(self, rows: Sequence[int]) -> list[int]:
        """These rows begin anew, so each needs a row of the cache that no other row refers to."""
        others = {slot for row in range(len(self._ids)) if row not in rows for slot in self._used_by(row)}
        taken = set(others)
        for row in rows:
            if self._slots[row] in taken:
                self._slots[row] = self._free(taken)
            taken.add(self._slots[row])
            self._origins[row] = self._slots[row]
        return [self._slots[row] for row in rows]

    def _used_by(self, row: int) -> set[int]:
        return {self._slots[row], *self._origins[row, : len(self._ids[row])].unique().tolist()}

    def _free(self, taken: set[int]) -> int:
        """A row of the cache that is not taken; the cache grows if there is none."""
        count = self._cache.shape[2]
        free = next((slot for slot in range(count) if slot not in taken), None)
        if free is not None:
            return free
        grown = self._cache.new_empty(*self._cache.shape[:2], 2 * count, *self._cache.shape[3:])
        filled = max(self.lengths, default=0)
        grown[:, :, :count, :, :filled] = self._cache[:, :, :, :, :filled]
        self._cache = grown
        return count

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """As `Context.step`."""
        rows = len(tokens)
        positions = torch.tensor(self.lengths, dtype=torch.int32)
        hidden = torch.empty(rows, self._model.shape.n_embd) if self._keep_hidden else None
        logits = self._stepper.step(
            self._cache, tokens.int(), positions, self._origins, torch.arange(rows, dtype=torch.int32), hidden
        )
        self._append(tokens.tolist())
        if hidden is not None:
            self._hidden = list(hidden[:, None])
        return logits

    @torch.inference_mode()
    def extend(self, tokens: Sequence[int]) -> Tensor:
        """As `Context.extend`."""
        count, held = len(tokens), len(self._ids[0])
        items = torch.arange(count, dtype=torch.int32)
        origins = self._origins[:1].expand(count, -1).contiguous()
        logits = self._stepper.step(
            self._cache, torch.tensor(tokens, dtype=torch.int32), items + held, origins, items, None
        )
        self._ids[0] += tokens
        return logits

    @torch.inference_mode()
    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order. Nothing is copied: a row named twice shares its history with its twin."""
        ids = [list(self._ids[row]) for row in rows]
        in_place = [len(text) for text in ids] == self.lengths
        self._origins = self._origins[list(rows)]
        if not in_place:
            self._assign(rows, ids)
        self._ids = ids
        for row, text in enumerate(ids):
            self._origins[row, len(text) :] = self._slots[row]

    def _assign(self, rows: Sequence[int], ids: Sequence[Sequence[int]]) -> None:
        """Give every new row a row of the cache to write to: the first child keeps that of its parent, the others
        take rows that no history refers to. (Where each row stays as long as it was, the one that it has will do:
        nothing was written there beyond its end.)"""
        taken = {self._slots[row] for row in rows}
        for row, text in enumerate(ids):
            taken.update(self._origins[row, : len(text)].unique().tolist())
        slots: list[int] = []
        for row in rows:
            slot = self._slots[row] if self._slots[row] not in slots else self._free(taken)
            slots.append(slot)
            taken.add(slot)
        self._slots = slots
