"""Evaluate a model on a text with a sliding context window: loss, perplexity and bits per byte."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
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
    end-of-text token after each example counts too. Examples with prompts are read one by one, and their prompts are
    context only, as in training.

    Args:
        found: the result of `scan_evaluation`, if the text was surveyed before.

    Raises:
        UserError: no such file, damaged weights, or a stride that is not shorter than the context length.
        RunError: memory ran out.
    """
    found = found or scan_evaluation(options, checkpoint)
    for line in found.notices:
        log.info(line)
    model, tokenizer = existing_model(checkpoint)
    positions = model.config.n_positions
    stride = options.stride or positions // 2
    check_stride(stride, positions)
    tokens = tokenize(found, tokenizer)
    length = len(tokens.ids)
    spans = sliding_windows(length, positions, stride)
    if found.has_prompts:
        spans = _spans_of_examples(tokens, positions, stride)
    with _explain_memory(device):
        torch.nn.Module.to(model, device)  # transformers' own `to` is annotated wrongly
        nats, counted = _measure(model.train(False), tokens, spans, length, options.batch_size)
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
def _measure(
    model: GPT2LMHeadModel, tokens: Tokens, spans: Iterator[Span], total: int, batch_size: int
) -> tuple[float, int]:
    """Return the summed loss of all counted tokens, and how many they are.

    The training loss is used: it never holds the logits of a batch.

    Args:
        total: how many tokens the spans count, with those of prompts.
    """
    nats, counted = 0.0, 0
    bar = tqdm(total=total, desc="evaluating", unit="token", unit_scale=True, leave=False, disable=None)
    while batch := list(islice(spans, batch_size)):
        rows, labels = _batch(tokens, batch)  # (B, T) each
        counted += int((labels[:, 1:] != NO_LOSS).sum())
        rows, labels = rows.to(model.device), labels.to(model.device)
        nats += model(rows, labels=labels, num_items_in_batch=1, use_cache=False).loss.item()  # 1: sum, not mean
        bar.update(sum(end - first for _, end, first in batch))
    bar.close()
    return nats, counted


def _batch(tokens: Tokens, spans: Sequence[Span]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids of windows and their labels, (B, T) each, padded on the right, where no token attends to them."""
    windows = [_window(tokens, span) for span in spans]
    rows = pad_sequence([ids for ids, _ in windows], batch_first=True)
    return rows, pad_sequence([labels for _, labels in windows], batch_first=True, padding_value=NO_LOSS)


def _window(tokens: Tokens, span: Span) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids of a window, (T,), and its labels, (T,), with NO_LOSS for tokens that do not count."""
    start, end, first_counted = span
    ids = torch.from_numpy(tokens.ids[start:end].astype(np.int64))
    labels = ids.clone()
    labels[: first_counted - start] = NO_LOSS
    if tokens.learned is not None:
        labels[torch.from_numpy(~tokens.learned[start:end])] = NO_LOSS
    return ids, labels


def _spans_of_examples(tokens: Tokens, positions: int, stride: int) -> Iterator[Span]:
    """Yield the windows over each example, the longest examples first, so that batches need little padding."""
    starts, lengths = tokens.starts, tokens.ends - tokens.starts
    for number in np.argsort(-lengths, kind="stable").tolist():
        start = int(starts[number])
        for begin, end, first in sliding_windows(int(lengths[number]), positions, stride):
            yield start + begin, start + end, start + first


def sliding_windows(length: int, positions: int, stride: int) -> Iterator[Span]:
    """Yield the windows over `length` tokens. Each token but the first counts in exactly one of them."""
    counted = 1
    for start in range(0, length, stride):
        end = min(start + positions, length)
        yield start, end, counted
        counted = end
        if end == length:
            return
