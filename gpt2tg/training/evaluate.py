"""How well a model knows a text: loss, perplexity and bits per byte with a sliding context."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import GPT2LMHeadModel

from gpt2tg.engine.checkpoints import find_checkpoint
from gpt2tg.errors import UserError
from gpt2tg.options import EvaluationOptions
from gpt2tg.training.data import NO_LOSS, TextSource, token_runs
from gpt2tg.training.model import existing_model
from gpt2tg.training.text import pieces, survey


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


def evaluate(model_name: str, options: EvaluationOptions, device: torch.device) -> Evaluation:
    """Measure a model on a text file.

    The context slides as transformers documents it for models of fixed length: windows as long as the model's
    positions, each `stride` tokens after the last, and of each only those tokens count that no window before it
    has counted. Where the text is read as several examples, the end-of-text token between them counts too; the
    bytes are those of the examples.

    Raises:
        UserError: no such model or file, or a stride that the positions do not allow.
    """
    if not options.eval_file:
        raise UserError("is required: give the text file to measure on", "eval_file")
    path = Path(options.eval_file)
    found = survey(path, options.examples, "eval_file")
    model, tokenizer = existing_model(find_checkpoint(model_name))
    positions = model.config.n_positions
    stride = options.stride or positions // 2
    if stride >= positions:  # the first token of a window has no context: windows must share at least one
        raise UserError(
            f"{stride} is too long for the {positions} positions of the model: use at most {positions - 1}", "stride"
        )
    ids = [token for run in token_runs(TextSource(found, options.examples), tokenizer) for token in run]
    if len(ids) < 2:
        raise UserError(f"{path} holds {len(ids)} token: at least 2 are needed", "eval_file")
    nats = _nats(model.to(device).eval(), torch.tensor(ids), positions, stride, options.batch_size)
    size = sum(len(piece.text.encode()) for piece in pieces(path, options.examples))
    return Evaluation(tokens=len(ids) - 1, bytes=size, nats=nats)


@torch.inference_mode()
def _nats(model: GPT2LMHeadModel, ids: Tensor, positions: int, stride: int, batch_size: int) -> float:
    """Sum over all tokens but the first. ids: (N,)"""
    total = 0.0
    batches = list(_batches(list(windows(len(ids), positions, stride)), batch_size))
    for batch in tqdm(batches, desc="measuring", leave=False, disable=None):
        rows = torch.stack([ids[start:end] for start, end, _ in batch])  # (B, T)
        labels = rows.clone()
        for row, (start, _, first_counted) in enumerate(batch):
            labels[row, : first_counted - start] = NO_LOSS
        logits = model(input_ids=rows.to(model.device)).logits[:, :-1].float()
        wanted = labels[:, 1:].to(model.device)
        total += torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), wanted, ignore_index=NO_LOSS, reduction="sum"
        ).item()
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


def _batches(spans: list[tuple[int, int, int]], size: int) -> Iterator[list[tuple[int, int, int]]]:
    """Windows of equal length side by side."""
    full = [span for span in spans if span[1] - span[0] == spans[0][1] - spans[0][0]]
    for start in range(0, len(full), size):
        yield full[start : start + size]
    yield from ([span] for span in spans[len(full) :])
