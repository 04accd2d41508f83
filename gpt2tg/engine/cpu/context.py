"""A context whose steps are taken by our own kernels, and whose rows share what they have in common.

Letters in shapes as in model.py; R rows of the cache, of which each text uses as many as its history needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gpt2tg.engine.cpu import kernels
from gpt2tg.engine.matrices import Panels
from gpt2tg.engine.model import GPT2, Context

# Tokens read in one go: what is noted of each grows with the cache, and a long prompt is no slower in pieces.
PIECE = 1024

_STEPPERS: WeakKeyDictionary[GPT2, Stepper] = WeakKeyDictionary()


def stepper_of(model: GPT2) -> Stepper | None:
    """What steps through this model in kernels; None if its matrices are not laid out for them."""
    if not all(isinstance(matrix, Panels) for matrix in model.matrices.values()):
        return None
    if model not in _STEPPERS:
        _STEPPERS[model] = Stepper(model)
    return _STEPPERS[model]


class Stepper:
    """A model as the kernels are given it. It keeps the model's numbers, but not the model."""

    def __init__(self, model: GPT2) -> None:
        self._shape = shape = model.shape
        self._weights, self._matrices = dict(model.weights), dict(model.matrices)
        wte = self._matrices["wte"]
        assert isinstance(wte, Panels)
        self._library = wte.compiled
        self.lanes = self._library.lanes
        # Rounded weights deserve no more than 16 bits for what they make, and half of it is read in half the time.
        self.held_in = "fp32" if model.precision == "fp32" else "fp16"
        self.tile = self.lanes * shape.n_embd // shape.n_head  # numbers of one head for so many tokens
        scales = map(model.attention_scale, range(shape.n_layer))
        self._layers = (kernels.Layer * shape.n_layer)(*(self._layer(*layer) for layer in enumerate(scales)))
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

    def _layer(self, layer: int, scale: float) -> kernels.Layer:
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
            scale=scale,
        )

    def _numbers(self, name: str) -> int | None:
        return kernels.pointer(self._weights[name])

    def _matrix(self, name: str) -> kernels.Matrix:
        matrix = self._matrices[name]
        assert isinstance(matrix, Panels)
        return matrix.structure()

    def padded(self, capacity: int) -> int:
        """The capacity that a cache has which is asked for so much."""
        return -(-capacity // self.lanes) * self.lanes

    def empty_cache(self, rows: int, capacity: int) -> Tensor:
        """Room for keys and values: (layers, 2, R, H * C * D). What is not written to takes no memory."""
        kind = torch.float32 if self.held_in == "fp32" else torch.float16
        return torch.empty(self._shape.n_layer, 2, rows, self._shape.n_embd * self.padded(capacity), dtype=kind)

    def step(
        self,
        cache: Tensor,
        tokens: Sequence[int],
        positions: Sequence[int],
        origins: Tensor,
        wanted: Sequence[int],
        hidden: Tensor | None,
    ) -> Tensor:
        """Read M tokens; `step` in kernels.c says what is what.

        Args:
            cache: (layers, 2, R, H * C * D) of `empty_cache`; the keys and values of the tokens are written to it.
            tokens, positions: M numbers.
            origins: (M, C) 32-bit.
            wanted: W numbers.
            hidden: (M, E) to be filled, or None.

        Returns:
            (W, V) logits after the items that are wanted.
        """
        shape, items, threads = self._shape, len(tokens), torch.get_num_threads()
        capacity = origins.shape[1]
        shared = 3 * items * shape.n_embd + (2 * items + self._library.items) * max(3 * shape.n_embd, shape.n_inner)
        room = shared + threads * (items * shape.n_embd + self._library.group * (capacity + self.lanes))
        scratch = torch.empty(room)  # not kept: threads may step through one model at once
        logits = torch.empty(len(wanted), shape.vocab_size)
        self._library.step(
            self._structure,
            kernels.Cache(kernels.pointer(cache), cache.shape[2], capacity, kernels.PRECISIONS[self.held_in]),
            items,
            kernels.integers(tokens),
            kernels.integers(positions),
            kernels.pointer(origins),
            len(wanted),
            kernels.integers(wanted),
            *map(kernels.pointer, (logits, hidden, scratch)),
            threads,
        )
        return logits


class KernelContext(Context):
    """A context that never copies what rows have in common.

    Each row notes for every position which row of the cache holds it, its origins. Rows that part, beams or samples
    of one prompt, share the origins of what they have in common, and write on to a row of the cache of their own.
    """

    is_exact = True

    def __init__(self, model: GPT2, stepper: Stepper, capacity: int, keep_hidden: bool = False) -> None:
        super().__init__(model, capacity, keep_hidden)
        self._stepper = stepper
        self._origins = torch.empty(0)  # (B, C) 32-bit; beyond a row's end, the row of the cache that it writes to
        self._slots: list[int] = []  # for each row, the row of the cache that it writes to

    def _allocate(self, rows: int) -> None:
        # Each layer's keys (R, H, T, D, LANES), then its values (R, H, C, D).
        self._cache = self._stepper.empty_cache(rows, self.capacity)
        self._slots = list(range(rows))
        self._origins = torch.arange(rows, dtype=torch.int32)[:, None].repeat(1, self._stepper.padded(self.capacity))

    def _begin_anew(self, rows: Sequence[int]) -> None:
        """Each of these rows needs a row of the cache that no other row refers to."""
        taken = {slot for row in range(len(self._ids)) if row not in rows for slot in self._used_by(row)}
        for row in rows:
            if self._slots[row] in taken:
                self._slots[row] = self._free(taken)
            taken.add(self._slots[row])
            self._origins[row] = self._slots[row]

    def _used_by(self, row: int) -> set[int]:
        return {self._slots[row], *self._origins[row, : len(self._ids[row])].unique().tolist()}

    def _free(self, taken: set[int]) -> int:
        """A row of the cache that is not taken; the cache grows if there is none."""
        free = next((slot for slot in range(self._cache.shape[2]) if slot not in taken), None)
        return self._grow(1) if free is None else free

    def _grow(self, rows: int) -> int:
        """Add rows to the cache. Only what holds tokens is copied. Returns the first of the new rows."""
        layers, parts, count, size = self._cache.shape
        grown = self._cache.new_empty(layers, parts, count + rows, size)
        filled = -(-max(self.lengths, default=0) // self._stepper.lanes)  # tiles of each head
        self._tiles(grown)[:, :, :count, :, :filled] = self._tiles(self._cache)[..., :filled, :]
        self._cache = grown
        return count

    def _tiles(self, cache: Tensor) -> Tensor:
        """Keys and values alike lie head by head in tiles of so many tokens as a register has lanes."""
        return cache.unflatten(3, (self._model.shape.n_head, -1, self._stepper.tile))

    @torch.inference_mode()
    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """As `Context.start`, but a single prompt that begins as a row does which is still held is read only from
        where they part."""
        if len(prompts) == 1 and self._ids and not self._keep_hidden:
            shared = [_shared(ids, prompts[0][:-1]) for ids in self._ids]
            row = max(range(len(shared)), key=shared.__getitem__)
            if shared[row]:
                self.select([row])
                self.take_back(len(self._ids[0]) - shared[row])
                return self._read({0: prompts[0][shared[row] :]}, logits_of_all=False)
        return super().start(prompts)

    @torch.inference_mode()
    def read(self, texts: Mapping[int, Sequence[int]]) -> Tensor:
        """As `Context.read`. What is computed for a text does not depend on those beside it, to the last bit."""
        for row in texts:
            self._ids[row] = []
        self._begin_anew(list(texts))
        return self._read(texts, logits_of_all=False)

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """As `Context.step`."""
        return self._read({row: [token] for row, token in enumerate(tokens.tolist())}, logits_of_all=False)

    @torch.inference_mode()
    def extend(self, tokens: Sequence[int]) -> Tensor:
        """As `Context.extend`."""
        return self._read({0: tokens}, logits_of_all=True)

    def _read(self, texts: Mapping[int, Sequence[int]], logits_of_all: bool) -> Tensor:
        """Append tokens to rows. Returns the logits after each token, or after the last of each row."""
        tokens = [token for text in texts.values() for token in text]
        places = [len(self._ids[row]) + n for row, text in texts.items() for n in range(len(text))]
        shape = self._model.shape
        if max(places) >= self.capacity:
            raise IndexError(f"the cache holds {self.capacity} tokens a row, and one has no more room")
        if min(tokens) < 0 or max(tokens) >= shape.vocab_size:
            raise IndexError(f"a token is outside the vocabulary of {shape.vocab_size}")
        rows = [row for row, text in texts.items() for _ in text]
        is_step = rows == list(range(len(self._ids)))  # no row is left out, none reads more than a token
        wanted = range(len(tokens)) if logits_of_all else [end - 1 for end in accumulate(map(len, texts.values()))]
        hidden = torch.empty(len(tokens), shape.n_embd) if self._keep_hidden else None
        logits = []
        for start in range(0, len(tokens), PIECE):
            piece = slice(start, start + PIECE)
            logits.append(
                self._stepper.step(
                    self._cache,
                    tokens[piece],
                    places[piece],
                    self._origins[piece] if is_step else self._origins[rows[piece]],
                    [item - start for item in wanted if start <= item < start + PIECE],
                    None if hidden is None else hidden[piece],
                )
            )
        for row, text in texts.items():
            self._ids[row] += text
        if hidden is not None:
            self._hidden = list(hidden.split([len(text) for text in texts.values()]))
        return logits[0] if len(logits) == 1 else torch.cat(logits)

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
        missing = len(rows) - len(set(rows)) - (self._cache.shape[2] - len(taken))
        if missing > 0:  # all at once
            self._grow(missing)
        slots: list[int] = []
        for row in rows:
            slot = self._slots[row] if self._slots[row] not in slots else self._free(taken)
            slots.append(slot)
            taken.add(slot)
        self._slots = slots


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two texts have in common at their beginning."""
    length = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        length += 1
    return length
