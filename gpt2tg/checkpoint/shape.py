"""The shape of a GPT-2: the numbers in config.json that decide what it computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """Sizes, activation, epsilon of the layer norms, scaling of attention, and end-of-text ids of a GPT-2."""

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int
    activation: str
    epsilon: float
    scale_attention: bool
    scale_by_layer: bool
    tied: bool
    end_ids: tuple[int, ...]

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield name and shape of every tensor that the weights must hold."""
        width = self.n_embd
        yield "wte.weight", (self.vocab_size, width)
        yield "wpe.weight", (self.n_positions, width)
        for layer in range(self.n_layer):
            for name, shape in {
                "ln_1": (width,),
                "attn.c_attn": (width, 3 * width),
                "attn.c_proj": (width, width),
                "ln_2": (width,),
                "mlp.c_fc": (width, self.n_inner),
                "mlp.c_proj": (self.n_inner, width),
            }.items():
                yield f"h.{layer}.{name}.weight", shape
                yield f"h.{layer}.{name}.bias", shape[-1:]
        yield "ln_f.weight", (width,)
        yield "ln_f.bias", (width,)
        if not self.tied:
            yield "lm_head.weight", (self.vocab_size, width)

    def matrices(self) -> Iterator[tuple[str, int, int, bool]]:
        """Yield the weight matrices that activations are multiplied with: name, inputs, outputs, and the layout.

        The layout is True for matrices stored as (outputs, inputs), as the token embedding and the head are, and
        False for (inputs, outputs).
        """
        for name, size in self.tensors():
            if len(size) == 2 and name != "wpe.weight":
                by_output = name in ("wte.weight", "lm_head.weight")
                yield name, *(reversed(size) if by_output else size), by_output
