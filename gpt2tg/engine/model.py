"""The GPT-2 forward pass (Radford et al. 2019): token ids in, logits of the next token out.

Letters in shapes: B rows, T tokens read at once, N tokens in the cache so far, C capacity of the cache,
H heads, D width of a head, E width of the model (E = H * D), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.checkpoint.tensor_names import HEAD
from gpt2tg.engine.cpu.preload import Preloaded
from gpt2tg.engine.matrices import Matrix, matrix_maker

ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "gelu_fast": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
}

# Keys (B, H, N, D), values (B, H, N, D), mask or None, whether plain causal masking is meant.
Attended = tuple[Tensor, Tensor, Tensor | None, bool]


class GPT2:
    """The weights of a GPT-2 and what they compute. Holds no state of any text: that is a `Context`."""

    def __init__(
        self,
        weights: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
        shape: ModelShape,
        device: torch.device,
        precision: str = "fp32",
        ready: Preloaded | None = None,
    ) -> None:
        """Take the weights in, one by one, so that no second copy of the model is ever held.

        Args:
            weights: by their plain names, in the order of `ModelShape.tensors`. With a head among them the model has
                one of its own, whatever the shape says.
            precision: `fp32`, `fp16`, `int8` or `auto`; see `matrix_maker`.
            ready: what was made ready of these weights.

        Raises:
            UserError: a precision that the device does not have, or weights too large for it.
        """
        self.device = device
        self.precision, make = matrix_maker(precision, device, shape.n_embd, shape.n_inner, ready)
        self.dtype = torch.float16 if self.precision == "fp16" and device.type != "cpu" else torch.float32
        self.weights: dict[str, Tensor] = {}  # norms, biases, positions
        self.matrices: dict[str, Matrix] = {}
        by_output = {HEAD: True} | {name: by_output for name, _, _, by_output in shape.matrices()}
        for name, tensor in weights.items() if isinstance(weights, Mapping) else weights:
            if name in by_output:
                self.matrices[name.removesuffix(".weight")] = make(tensor.t() if by_output[name] else tensor)
            else:
                self.weights[name] = tensor.to(device, self.dtype, copy=True, memory_format=torch.contiguous_format)
        for name, matrix in self.matrices.items():
            matrix.bias = self.weights.get(f"{name}.bias")
        self.shape = replace(shape, tied="lm_head" not in self.matrices)
        self.head = self.matrices["wte" if self.shape.tied else "lm_head"]
        self._activation = ACTIVATION_FUNCTIONS[shape.activation]

    def context(self, capacity: int, keep_hidden: bool = False) -> Context:
        """An empty cache for rows of at most `capacity` tokens.

        Args:
            keep_hidden: whether `Context.hidden` will be asked.

        Raises:
            ValueError: the model has fewer positions than that.
        """
        from gpt2tg.engine.cpu.context import KernelContext, stepper_of

        stepper = stepper_of(self)
        return (
            Context(self, capacity, keep_hidden)
            if stepper is None
            else KernelContext(self, stepper, capacity, keep_hidden)
        )

    @property
    def shares_memory(self) -> bool:
        """Whether rows of a context that begin alike hold their beginning once."""
        from gpt2tg.engine.cpu.context import stepper_of

        return stepper_of(self) is not None

    def hidden(self, ids: Tensor, positions: Tensor, cache: Callable[[int, Tensor, Tensor], Attended]) -> Tensor:
        """Run all layers.

        Args:
            ids: (B, T) tokens to read.
            positions: (B, T) their places in the text, from 0.
            cache: takes the layer and the new keys and values (B, H, T, D); gives those to attend to.

        Returns:
            (B, T, E) after the final layer norm.
        """
        x = self.matrices["wte"].columns(ids) + F.embedding(positions, self.weights["wpe.weight"])
        for layer in range(self.shape.n_layer):
            x = x + self._attention(layer, self._norm(f"h.{layer}.ln_1", x), cache)
            x = x + self._feed_forward(layer, self._norm(f"h.{layer}.ln_2", x))
        return self._norm("ln_f", x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, E) -> (B, V)"""
        return self.head(hidden).float()

    def attention_scale(self, layer: int) -> float:
        """What the products of queries and keys are multiplied with."""
        scale = 1 / math.sqrt(self.shape.n_embd // self.shape.n_head) if self.shape.scale_attention else 1.0
        return scale / (layer + 1) if self.shape.scale_by_layer else scale

    @torch.inference_mode()
    def all_logits(self, ids: Sequence[int], chunk: int = 64) -> Iterator[Tensor]:
        """Read a text once and give the logits of the token after each of its ids.

        They come in pieces of (chunk, V), the last one shorter: all at once they would be large.

        Raises:
            ValueError: more ids than the model has positions.
        """
        if len(ids) > self.shape.n_positions:
            raise ValueError(f"{len(ids)} tokens given, but the model has {self.shape.n_positions} positions")
        positions = torch.arange(len(ids), device=self.device)[None]
        hidden = self.hidden(torch.tensor([list(ids)], device=self.device), positions, _nothing_before)
        for part in hidden[0].split(chunk):
            yield self.logits(part)

    def _attention(self, layer: int, x: Tensor, cache: Callable[[int, Tensor, Tensor], Attended]) -> Tensor:
        """(B, T, E) -> (B, T, E)"""
        batch, tokens, width = x.shape
        projected = self._linear(f"h.{layer}.attn.c_attn", x)
        heads = projected.view(batch, tokens, 3, self.shape.n_head, width // self.shape.n_head)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        keys, values, mask, is_causal = cache(layer, key, value)
        mixed = F.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, is_causal=is_causal, scale=self.attention_scale(layer)
        )
        return self._linear(f"h.{layer}.attn.c_proj", mixed.transpose(1, 2).reshape(batch, tokens, width))

    def _feed_forward(self, layer: int, x: Tensor) -> Tensor:
        inner = self._activation(self._linear(f"h.{layer}.mlp.c_fc", x))
        return self._linear(f"h.{layer}.mlp.c_proj", inner)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return self.matrices[name](x.flatten(0, -2)).unflatten(0, x.shape[:-1])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, self.shape.epsilon)


# Keys (B, H, N, D), values (B, H, N, D), mask or None, whether plain causal masking is meant.
Attended = tuple[Tensor, Tensor, Tensor | None, bool]


def _nothing_before(layer: int, key: Tensor, value: Tensor) -> Attended:
    """A text read as a whole needs no cache."""
    return key, value, None, True


class Context:
    """The texts that are being written: a key-value cache, allocated once, a row per text.

    Rows may have unequal lengths. Each starts at slot 0 of its own row, so that positions need no shifting,
    and what a shorter row holds beyond its end is masked until its own tokens overwrite it.
    """

    is_exact = False
    """Whether `extend` computes the very numbers that as many steps would, to the last bit."""

    def __init__(self, model: GPT2, capacity: int, keep_hidden: bool = False) -> None:
        if capacity > model.shape.n_positions:
            raise ValueError(f"{capacity} tokens asked for, but the model has {model.shape.n_positions} positions")
        self._model = model
        self.capacity = capacity
        self._cache = torch.empty(0)  # (layers, keys and values, B, H, C, D)
        self._ids: list[list[int]] = []  # tokens of each row
        self._keep_hidden = keep_hidden
        self._hidden: list[Tensor] = []

    @property
    def lengths(self) -> list[int]:
        """How many tokens each row holds."""
        return [len(ids) for ids in self._ids]

    def hidden(self) -> list[Tensor]:
        """For each row, the final states of the tokens that the last `start` or `step` read. Each (T, E)."""
        return self._hidden

    @torch.inference_mode()
    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read the prompts (none of them empty), a row each; what the context held before is forgotten.

        Returns:
            (B, V) logits of the token after each prompt.
        """
        self._ids = [[] for _ in prompts]  # first: interrupted here, it holds no text
        self._allocate(len(prompts))
        return self.read(dict(enumerate(prompts)))

    @torch.inference_mode()
    def read(self, texts: Mapping[int, Sequence[int]]) -> Tensor:
        """Read some rows from their beginning, in place of what they held; the other rows stay as they are.

        Args:
            texts: ids by row, none of them empty.

        Returns:
            (B, V) logits of the token after each of the texts.
        """
        model = self._model
        slots = list(texts)
        lengths = [len(text) for text in texts.values()]
        longest = max(lengths)
        padded = [[*text, *[0] * (longest - len(text))] for text in texts.values()]
        positions = torch.arange(longest, device=model.device).expand(len(slots), -1)

        def remember(layer: int, key: Tensor, value: Tensor) -> Attended:
            # Padding stands on the right, where the causal mask hides it from every token of the text.
            self._cache[layer, 0, slots, :, :longest] = key
            self._cache[layer, 1, slots, :, :longest] = value
            return key, value, None, True

        hidden = model.hidden(torch.tensor(padded, device=model.device), positions, remember)
        for row, text in texts.items():
            self._ids[row] = list(text)
        if self._keep_hidden:
            self._hidden = [hidden[row, :length] for row, length in enumerate(lengths)]
        last = torch.tensor(lengths, device=model.device) - 1
        return model.logits(hidden[torch.arange(len(slots)), last])

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Append a token to every row.

        Args:
            tokens: (B,) ids.

        Returns:
            (B, V) logits of the token after each row.
        """
        model = self._model
        lengths = torch.tensor(self.lengths, device=model.device)  # (B,)
        longest = max(self.lengths) + 1
        is_even = min(self.lengths) == longest - 1
        mask = None if is_even else (torch.arange(longest, device=model.device) <= lengths[:, None])[:, None, None]
        rows = torch.arange(len(lengths), device=model.device)

        def remember(layer: int, key: Tensor, value: Tensor) -> Attended:
            keys, values = self._cache[layer]
            if is_even:
                keys[:, :, longest - 1] = key[:, :, 0]
                values[:, :, longest - 1] = value[:, :, 0]
            else:
                keys[rows, :, lengths] = key[:, :, 0]
                values[rows, :, lengths] = value[:, :, 0]
            return keys[:, :, :longest], values[:, :, :longest], mask, False

        hidden = model.hidden(tokens.to(model.device)[:, None], lengths[:, None], remember)
        self._append(tokens.tolist())
        if self._keep_hidden:
            self._hidden = list(hidden)
        return model.logits(hidden[:, 0])

    @torch.inference_mode()
    def extend(self, tokens: Sequence[int]) -> Tensor:
        """Append several tokens to the only row. Returns (T, V) logits of the token after each."""
        model, held = self._model, len(self._ids[0])
        places = torch.arange(held, held + len(tokens), device=model.device)
        mask = (torch.arange(held + len(tokens), device=model.device) <= places[:, None])[None, None]

        def remember(layer: int, key: Tensor, value: Tensor) -> Attended:
            keys, values = self._cache[layer]
            keys[:, :, held : held + len(tokens)] = key
            values[:, :, held : held + len(tokens)] = value
            return keys[:, :, : held + len(tokens)], values[:, :, : held + len(tokens)], mask, False

        hidden = model.hidden(torch.tensor([list(tokens)], device=model.device), places[None], remember)
        self._ids[0] += tokens
        return model.logits(hidden[0])

    def take_back(self, count: int) -> None:
        """Forget the last `count` tokens of the only row."""
        del self._ids[0][len(self._ids[0]) - count :]

    @torch.inference_mode()
    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row named twice is copied, a row not named is dropped.

        Where the number of rows stays, only those are copied that change, and only as far as they are filled.
        """
        filled = max(self.lengths)
        if len(rows) == len(self._ids):
            changed = [row for row, source in enumerate(rows) if source != row]
            if changed:
                sources = [rows[row] for row in changed]
                self._cache[:, :, changed, :, :filled] = self._cache[:, :, sources, :, :filled]
        else:
            kept = self._cache.new_zeros(*self._cache.shape[:2], len(rows), *self._cache.shape[3:])
            kept[:, :, :, :, :filled] = self._cache[:, :, list(rows), :, :filled]
            self._cache = kept
        self._ids = [list(self._ids[row]) for row in rows]

    def _allocate(self, rows: int) -> None:
        shape = self._model.shape
        # Zeros, not whatever memory held: a masked slot has no weight in attention, but nothing times NaN is NaN.
        self._cache = torch.zeros(
            *(shape.n_layer, 2, rows, shape.n_head, self.capacity, shape.n_embd // shape.n_head),
            device=self._model.device,
            dtype=self._model.dtype,
        )

    def _append(self, tokens: Sequence[int]) -> None:
        for ids, token in zip(self._ids, tokens, strict=True):
            ids.append(token)
