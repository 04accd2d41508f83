"""How well a model knows a text: loss, perplexity and bits per byte with a sliding context."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm
from transformers import GPT2LMHeadModel

from gpt2tg.engine.checkpoints import find_checkpoint
from gpt2tg.options import EvaluationOptions
from gpt2tg.training.callbacks import say
from gpt2tg.training.checks import check_stride
from gpt2tg.training.data import NO_LOSS
from gpt2tg.training.model import existing_model
from gpt2tg.training.sources import Survey, plan_evaluation
from gpt2tg.training.tokens import tokenize


@dataclass(frozen=True)
class Evaluation:
    """What was measured. The first token of the text has no context and is not counted."""

    tokens: int
    bytes: int
    nats: float

    @property
    def loss(self) -> float:
        """Mean per token, in nats."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """e to the power of the loss."""
        return perplexity(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """Comparable between models with different tokenizers."""
        return self.nats / math.log(2) / self.bytes


def perplexity(loss: float) -> float:
    """e to the power of a mean loss in nats per token; infinite where that overflows, NaN where the loss is."""
    return math.inf if loss > 700 else math.exp(loss)


def evaluate(
    model_name: str, options: EvaluationOptions, device: torch.device, found: Survey | None = None
) -> Evaluation:
    """Measure a model on a text file.

    The context slides as transformers documents it for models of fixed length: windows as long as the model's
    positions, each `stride` tokens after the last, and of each only those tokens count that no window before it
    has counted. Where the text is read as several examples, the end-of-text token between them counts too; the
    bytes are those of the examples.

    Args:
        found: as `plan_evaluation` finds it, where the text has been looked through before.

    Raises:
        UserError: no such model or file, or a stride that the positions do not allow.
    """
    found = found or plan_evaluation(options)
    for line in found.notices:
        say(line)
    model, tokenizer = existing_model(find_checkpoint(model_name))
    positions = model.config.n_positions
    stride = options.stride or positions // 2
    check_stride(stride, positions)
    ids = tokenize(found, tokenizer).ids
    nats = _nats(model.to(device).eval(), ids, positions, stride, options.batch_size)
    return Evaluation(tokens=len(ids) - 1, bytes=found.text_bytes, nats=nats)


@torch.inference_mode()
def _nats(model: GPT2LMHeadModel, ids: np.ndarray, positions: int, stride: int, batch_size: int) -> float:
    """Sum over all tokens but the first. ids: (N,), on disk"""
    total = 0.0
    bar = tqdm(total=len(ids), desc="measuring", unit="token", unit_scale=True, leave=False, disable=None)
    for batch in _batches(windows(len(ids), positions, stride), batch_size):
        rows = torch.stack([torch.from_numpy(ids[start:end].astype(np.int64)) for start, end, _ in batch])  # (B, T)
        labels = rows.clone()
        for row, (start, _, first_counted) in enumerate(batch):
            labels[row, : first_counted - start] = NO_LOSS
        logits = model(input_ids=rows.to(model.device)).logits[:, :-1].float()
        wanted = labels[:, 1:].to(model.device)
        total += torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), wanted, ignore_index=NO_LOSS, reduction="sum"
        ).item()
        bar.update(batch[-1][1] - batch[0][2])
    bar.close()
    return total


def windows(length: int, positions: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Start, end and first counted token of each window over `length` tokens; each token but 0 is counted once."""
    counted = 1
    for start in range(0, length, stride):
        end = min(start + positions, length)
        yield start, end, counted
        counted = end
        if end == length:
            return


def _batches(spans: Iterator[tuple[int, int, int]], size: int) -> Iterator[list[tuple[int, int, int]]]:
    """Windows of equal length side by side: only the last may be shorter, and then it is alone."""
    batch: list[tuple[int, int, int]] = []
    for span in spans:
        if batch and (len(batch) == size or span[1] - span[0] != batch[0][1] - batch[0][0]):
            yield batch
            batch = []
        batch.append(span)
    if batch:
        yield batch
