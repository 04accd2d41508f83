"""GPT-2's forward pass as a torch module that exports to ONNX, with the KV cache as input and output.

optimum, the exporter for transformers' own models, cannot be installed together with transformers 5.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2LMHeadModel


class Forward(nn.Module):
    """GPT-2 for rows of equal length: B rows, T new tokens, N tokens so far, H heads of width D, vocabulary V."""

    def __init__(self, model: GPT2LMHeadModel) -> None:
        super().__init__()
        self.model = model
        self.heads = model.config.n_head

    def forward(self, ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """(B, T) ids, keys and values per layer (B, H, N, D) -> (B, V) logits, keys and values (B, H, N + T, D)."""
        body = self.model.transformer
        before, new = past[0].shape[2], ids.shape[1]
        positions = torch.arange(before, before + new)
        hidden_from = positions[:, None] < torch.arange(before + new)[None]  # (T, N + T)
        mask = torch.zeros(hidden_from.shape).masked_fill(hidden_from, -1e9)
        x = body.wte(ids) + body.wpe(positions)
        present = []
        for layer, block in enumerate(body.h):
            mixed, keys, values = self._attention(block.attn, block.ln_1(x), past[2 * layer : 2 * layer + 2], mask)
            present += [keys, values]
            x = x + mixed
            inner = F.gelu(self._linear(block.mlp.c_fc, block.ln_2(x)), approximate="tanh")
            x = x + self._linear(block.mlp.c_proj, inner)
        return self.model.lm_head(body.ln_f(x[:, -1])), *present

    def _attention(self, attention: nn.Module, x: Tensor, past: tuple[Tensor, ...], mask: Tensor) -> tuple[Tensor, ...]:
        split = self._linear(attention.c_attn, x).view(*x.shape[:2], 3, self.heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, T, D)
        keys, values = torch.cat((past[0], key), 2), torch.cat((past[1], value), 2)
        scores = query @ keys.transpose(2, 3) / math.sqrt(x.shape[-1] // self.heads) + mask
        mixed = scores.softmax(-1) @ values
        return self._linear(attention.c_proj, mixed.transpose(1, 2).reshape(x.shape)), keys, values

    @staticmethod
    def _linear(conv1d: nn.Module, x: Tensor) -> Tensor:
        return x @ conv1d.weight + conv1d.bias

    def example(self) -> tuple[tuple[Tensor, ...], list[str]]:
        """Return inputs to trace with, and the names of the keys and values."""
        config = self.model.config
        past = torch.zeros(2, config.n_head, 3, config.n_embd // config.n_head)
        names = [f"{layer}.{part}" for layer in range(config.n_layer) for part in ("key", "value")]
        return (torch.ones(2, 4, dtype=torch.long), *[past] * len(names)), names
