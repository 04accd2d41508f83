"""How well a model knows a text: loss, perplexity and bits per byte with a sliding context."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm
from transformers import GPT2LMHeadModel

from gpt2tg.checkpoint.find import find_checkpoint
from gpt2tg.options import EvaluationOptions
from gpt2tg.training.callbacks import say
from gpt2tg.training.checks import check_stride
from gpt2tg.training.data.blocks import NO_LOSS
from gpt2tg.training.data.corpus import Corpus
from gpt2tg.training.data.sources import scan_evaluation
from gpt2tg.training.data.token_cache import Tokens, tokenize
from gpt2tg.training.model.build import existing_model


@dataclass(frozen=True)
class Evaluation:
    """What was measured. The first token of the text has no context and is not counted, nor is a prompt."""

    tokens: int
    bytes: int  # of the text that was measured
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
    model_name: str, options: EvaluationOptions, device: torch.device, found: Corpus | None = None
) -> Evaluation:
    """Measure a model on a text file.

    The context slides as transformers documents it for models of fixed length: windows as long as the model's
    positions, each `stride` tokens after the last, and of each only those tokens count that no window before it
    has counted. Where the text is read as several examples, the end-of-text token between them counts too. Prompts
    of a table of prompts and completions are context alone, as in training. The bytes are those of what counts.

    Args:
        found: as `scan_evaluation` finds it, where the text has been looked through before.

    Raises:
        UserError: no such model or file, or a stride that the positions do not allow.
    """
    found = found or scan_evaluation(options)
    for line in found.notices:
        say(line)
    model, tokenizer = existing_model(find_checkpoint(model_name))
    positions = model.config.n_positions
    stride = options.stride or positions // 2
    check_stride(stride, positions)
    tokens = tokenize(found, tokenizer)
    nats = _nats(model.to(device).eval(), tokens, positions, stride, options.batch_size)
    counted = len(tokens.ids) - 1 if tokens.learned is None else int(np.count_nonzero(tokens.learned[1:]))
    return Evaluation(tokens=counted, bytes=found.learned_bytes, nats=nats)


@torch.inference_mode()
def _nats(model: GPT2LMHeadModel, tokens: Tokens, positions: int, stride: int, batch_size: int) -> float:
    """Sum over all tokens that count; the model computes it as in training, without the logits of a whole batch."""
    total, length = 0.0, len(tokens.ids)
    bar = tqdm(total=length, desc="measuring", unit="token", unit_scale=True, leave=False, disable=None)
    for batch in _batches(windows(length, positions, stride), batch_size):
        rows, labels = map(torch.stack, zip(*(_window(tokens, span) for span in batch), strict=True))  # (B, T) each
        rows, labels = rows.to(model.device), labels.to(model.device)
        total += model(rows, labels=labels, num_items_in_batch=1, use_cache=False).loss.item()  # 1: the sum
        bar.update(batch[-1][1] - batch[0][2])
    bar.close()
    return total


def _window(tokens: Tokens, span: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(T,) the ids of a window, and the same with NO_LOSS where a token does not count."""
    start, end, first_counted = span
    ids = torch.from_numpy(tokens.ids[start:end].astype(np.int64))
    labels = ids.clone()
    labels[: first_counted - start] = NO_LOSS
    if tokens.learned is not None:
        labels[torch.from_numpy(~tokens.learned[start:end])] = NO_LOSS
    return ids, labels


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
