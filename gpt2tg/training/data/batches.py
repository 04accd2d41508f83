"""Collate blocks to padded batches for the model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gpt2tg.training.data.blocks import NO_LOSS, BlockRow


def collate(block_size: int, pad_id: int) -> Callable[[list[BlockRow]], dict[str, Tensor]]:
    """Return a collator that pads blocks to `block_size` and stacks them. It can be pickled for data loader workers.

    Padding is on the right, where no real token attends to it, and carries no loss. So no attention mask is needed,
    and attention is faster without one. If the blocks have `position_ids`, each padding token gets position 0. From
    them the model makes the mask that keeps the examples apart.
    """
    return partial(_collate, block_size=block_size, pad_id=pad_id)


def _collate(rows: list[BlockRow], block_size: int, pad_id: int) -> dict[str, Tensor]:
    def padded(name: str, filling: int) -> Tensor:
        batch = torch.full((len(rows), block_size), filling)  # (B, T)
        for i, row in enumerate(rows):
            batch[i, : len(row[name])] = torch.as_tensor(row[name], dtype=torch.long)
        return batch

    labels = padded("labels" if "labels" in rows[0] else "input_ids", NO_LOSS)
    batch = {"input_ids": padded("input_ids", pad_id), "labels": labels}
    if "position_ids" in rows[0]:
        batch["position_ids"] = padded("position_ids", 0)
    return batch


def count_tokens(batch: dict[str, Tensor], pad_id: int) -> Tensor:
    """Return the number of tokens in a batch that are not padding, (): in each row, those up to the last real one."""
    is_padding = (batch["input_ids"] == pad_id) & (batch["labels"] == NO_LOSS)  # (B, T)
    places = torch.arange(1, is_padding.shape[1] + 1, device=is_padding.device)
    return places.where(~is_padding, 0).amax(dim=1).sum()
