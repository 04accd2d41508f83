"""Evaluate a model on a text with a sliding context window: loss, perplexity and bits per byte."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm
from transformers import GPT2LMHeadModel

from gpt2tg.checkpoint.checkpoint import Checkpoint
from gpt2tg.errors import RunError
from gpt2tg.inspection.perplexity import perplexity
from gpt2tg.io.memory import is_out_of_memory
from gpt2tg.options import EvaluationOptions
from gpt2tg.training.checks import check_stride
from gpt2tg.training.console import log
from gpt2tg.training.data.blocks import NO_LOSS
from gpt2tg.training.data.corpus import Corpus
from gpt2tg.training.data.sources import scan_evaluation
from gpt2tg.training.data.token_cache import tokenize
from gpt2tg.training.data.tokens import Tokens
from gpt2tg.training.model.build import existing_model

# Start, end and first counted token of a window.
Span = tuple[int, int, int]


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation. It counts neither the first token of the text, which has no context, nor prompts."""

    tokens: int
    bytes: int  # of the text that was counted
    nats: float  # the sum over all counted tokens

    @property
    def loss(self) -> float:
        """Mean negative log-probability per token, in nats."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return perplexity(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model needs per byte of text: comparable between models with different tokenizers."""
        return self.nats / math.log(2) / self.bytes


def evaluate(
    checkpoint: Checkpoint, options: EvaluationOptions, device: torch.device, found: Corpus | None = None
) -> Evaluation:
    """Evaluate a model on the files that the options name.

    The window slides as in transformers' guide "Perplexity of fixed-length models": each window has the model's context
    length and starts `stride` tokens after the last one. A token counts in the first window that contains it. The
    end-of-text token after each example counts too. Prompts of a table of prompts and completions are context only, as
    in training.

    Args:
        found: the result of `scan_evaluation`, if the text was surveyed before.

    Raises:
        UserError: no such file, damaged weights, or a stride that is not shorter than the context length.
        RunError: memory ran out.
    """
    found = found or scan_evaluation(options)
    for line in found.notices:
        log.info(line)
    model, tokenizer = existing_model(checkpoint)
    positions = model.config.n_positions
    stride = options.stride or positions // 2
    check_stride(stride, positions)
    tokens = tokenize(found, tokenizer)
    with _explain_memory(device):
        torch.nn.Module.to(model, device)  # transformers' own `to` is annotated wrongly
        nats = _nats(model.train(False), tokens, positions, stride, options.batch_size)
    counted = len(tokens.ids) - 1 if tokens.learned is None else tokens.learned.count() - bool(tokens.learned[0])
    return Evaluation(tokens=counted, bytes=found.learned_bytes, nats=nats)


@contextlib.contextmanager
def _explain_memory(device: torch.device) -> Iterator[None]:
    """Turn running out of memory into a RunError that names what to change."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        elsewhere = "" if device.type == "cpu" else ", or use --device cpu"
        raise RunError(f"out of memory: lower --batch_size{elsewhere}") from None


@torch.inference_mode()
def _nats(model: GPT2LMHeadModel, tokens: Tokens, positions: int, stride: int, batch_size: int) -> float:
    """Return the summed loss of all counted tokens. The training loss is used: it never holds the logits of a batch."""
    total, length = 0.0, len(tokens.ids)
    bar = tqdm(total=length, desc="evaluating", unit="token", unit_scale=True, leave=False, disable=None)
    for batch in _batches(sliding_windows(length, positions, stride), batch_size):
        rows, labels = map(torch.stack, zip(*(_window(tokens, span) for span in batch), strict=True))  # (B, T) each
        rows, labels = rows.to(model.device), labels.to(model.device)
        total += model(rows, labels=labels, num_items_in_batch=1, use_cache=False).loss.item()  # 1: sum, not mean
        bar.update(batch[-1][1] - batch[0][2])
    bar.close()
    return total


def _window(tokens: Tokens, span: Span) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids of a window, (T,), and its labels, (T,), with NO_LOSS for tokens that do not count."""
    start, end, first_counted = span
    ids = torch.from_numpy(tokens.ids[start:end].astype(np.int64))
    labels = ids.clone()
    labels[: first_counted - start] = NO_LOSS
    if tokens.learned is not None:
        labels[torch.from_numpy(~tokens.learned[start:end])] = NO_LOSS
    return ids, labels


def sliding_windows(length: int, positions: int, stride: int) -> Iterator[Span]:
    """Yield the windows over `length` tokens. Each token but the first counts in exactly one of them."""
    counted = 1
    for start in range(0, length, stride):
        end = min(start + positions, length)
        yield start, end, counted
        counted = end
        if end == length:
            return


def _batches(spans: Iterator[Span], size: int) -> Iterator[list[Span]]:
    """Group windows of equal length into batches. Only the last window may be shorter; it gets its own batch."""
    batch: list[Span] = []
    for span in spans:
        if batch and (len(batch) == size or span[1] - span[0] != batch[0][1] - batch[0][0]):
            yield batch
            batch = []
        batch.append(span)
    if batch:
        yield batch
