"""Cross entropy of a language model in chunks of rows, without ever holding all logits.

The logits of a batch, tokens times vocabulary, are by far the largest tensor of a training step, and torch would hold
them three times: as logits, as log-probabilities and as gradients. Here the forward pass takes a chunk of the rows at
a time, computes the gradients at once, and keeps only those of the hidden states and the output layer. The method is
that of Liger Kernel (Hsu et al. 2024).

Shapes: N rows (tokens), R rows of a chunk, W width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from gpt2tg.training.data.blocks import NO_LOSS
from gpt2tg.training.model.unlikelihood import Unlikelihood

# Rows of a chunk: 206 MB of logits for GPT-2's vocabulary in fp32, and matrix products that keep a GPU busy.
ROWS = 1024

HALVES = (torch.float16, torch.bfloat16)

# In 16 bits, GPUs multiply fast only if the vocabulary is a multiple of this. GPT-2's 50,257 is not.
VOCABULARY_MULTIPLE = 64


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch does not annotate it
def next_token_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    count: Tensor | int | None = None,
    unlikelihood: Unlikelihood | None = None,
) -> Tensor:
    """Return the cross entropy of the next tokens in nats: the sum divided by `count`, or the mean if that is None.

    Not compiled: torch.compile would gain little, and cannot trace gradients that are computed in place.

    Args:
        hidden: (B, T, W) the input of the output layer.
        weight: (V, W) the output layer.
        labels: (B, T) the tokens themselves, not shifted; NO_LOSS for those that carry no loss.
        unlikelihood: a loss on repeated n-grams to add.

    Returns:
        ()
    """
    targets = F.pad(labels[:, 1:], (0, 1), value=NO_LOSS).flatten()  # (B·T,)
    if count is None:
        count = (targets != NO_LOSS).sum()
    total: Tensor = LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]  # torch does not annotate it
        hidden.flatten(0, 1), weight, targets, torch.is_grad_enabled(), unlikelihood
    )
    return total / count


class LinearCrossEntropy(torch.autograd.Function):
    """The sum of -log softmax(hidden @ weight.T)[label] over the rows that have a label.

    Under autocast the factors of matrix products are in 16 bits. Probabilities and loss are in fp32, and on a CUDA GPU
    the logits too. So is the gradient of the weight: it is computed before the loss is scaled, so a smaller loss scale
    could not prevent its overflow.
    """

    @staticmethod
    def forward(
        context: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        needs_gradients: bool,
        unlikelihood: Unlikelihood | None,
    ) -> Tensor:
        """hidden: (N, W), weight: (V, W), labels: (N,) → ()"""
        context.dtypes, context.vocabulary = (hidden.dtype, weight.dtype), len(weight)
        wanted = [needs_gradients and needed for needed in context.needs_input_grad[:2]]
        device = hidden.device.type
        if torch.is_autocast_enabled(device):
            half = torch.get_autocast_dtype(device)
            hidden, weight = hidden.to(half), weight.to(half)
            if extra := padding(len(weight), device):
                weight = F.pad(weight, (0, 0, 0, extra))
        with torch.autocast(device, enabled=False):
            loss, *gradients = _loss_and_gradients(hidden, weight, labels, context.vocabulary, unlikelihood, *wanted)
        context.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients of the forward pass, in place because they are large."""
        to_hidden, to_weight = (
            None if saved is None else saved.to(dtype).mul_(gradient)
            for saved, dtype in zip(context.saved_tensors, context.dtypes, strict=True)
        )
        return to_hidden, None if to_weight is None else to_weight[: context.vocabulary], None, None, None


def padding(vocabulary: int, device: str) -> int:
    """Return how many rows of zeros to add to the output layer while the loss is computed."""
    return -vocabulary % VOCABULARY_MULTIPLE if device == "cuda" else 0


def _loss_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    vocabulary: int,
    unlikelihood: Unlikelihood | None,
    to_hidden: bool,
    to_weight: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the summed loss and the requested gradients, one chunk of rows at a time.

    Args:
        hidden: (N, W)
        weight: (V, W); rows from `vocabulary` on are padding.
        labels: (N,)
    """
    loss = torch.zeros((), dtype=_sum_dtype(hidden), device=hidden.device)
    hidden_gradient = torch.empty_like(hidden) if to_hidden else None
    weight_gradient = None
    for start in range(0, len(hidden), ROWS):
        chunk = slice(start, start + ROWS)
        log_probabilities = _log_probabilities(hidden[chunk], weight, vocabulary)
        loss += F.nll_loss(log_probabilities, labels[chunk], ignore_index=NO_LOSS, reduction="sum")
        if not (to_hidden or to_weight):
            continue
        probabilities = log_probabilities.exp_()
        if unlikelihood is not None:
            loss += unlikelihood.add_gradient(probabilities, labels[chunk], start)
        logit_gradient = _subtract_labels(probabilities, labels[chunk]).to(hidden.dtype)
        del log_probabilities, probabilities
        has_label = (labels[chunk] != NO_LOSS)[:, None]
        if hidden_gradient is not None:
            torch.mm(logit_gradient, weight, out=hidden_gradient[chunk]).mul_(has_label)
        if to_weight:
            weight_gradient = _add_product(weight_gradient, logit_gradient.T, hidden[chunk] * has_label)
        del logit_gradient
    return loss, hidden_gradient, weight_gradient


def _sum_dtype(x: Tensor) -> torch.dtype:
    """Return the type for sums over many tokens: fp32, or fp64 if x is fp64."""
    return torch.promote_types(x.dtype, torch.float32)


def _log_probabilities(hidden: Tensor, weight: Tensor, vocabulary: int) -> Tensor:
    """Return the log-probabilities of all tokens for each row in fp32, (R, V).

    Args:
        hidden: (R, W)
        weight: (V, W)
    """
    # GPT-2's logits are around -100, where neighbouring numbers are 1/2 apart in bf16, and 1/16 in fp16.
    if hidden.dtype in HALVES and has_fp32_products(hidden):
        logits = torch.mm(hidden, weight.T, out_dtype=torch.float32)
    else:
        logits = hidden @ weight.T
    logits[:, vocabulary:] = -torch.inf
    if logits.device.type == "cpu":  # there log_softmax would make the same copy and keep both
        logits = logits.to(_sum_dtype(logits))
    return F.log_softmax(logits, dim=1, dtype=_sum_dtype(logits))


def has_fp32_products(a: Tensor) -> bool:
    """Whether the library of the device multiplies 16-bit matrices to fp32 ones: cuBLAS does."""
    return a.is_cuda and torch.version.hip is None


def _subtract_labels(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Turn probabilities into the gradient of the logits, in place, (R, V). Rows without a label are not zero."""
    probabilities[torch.arange(len(labels), device=labels.device), labels.clamp(min=0)] -= 1
    return probabilities


def _add_product(total: Tensor | None, logit_gradient: Tensor, hidden: Tensor) -> Tensor:
    """Add the gradient of the weight from one chunk to the total.

    Args:
        total: (V, W) in fp32, changed in place; None before the first chunk.
        logit_gradient: (V, R)
        hidden: (R, W)
    """
    if logit_gradient.dtype == _sum_dtype(logit_gradient):
        return logit_gradient @ hidden if total is None else total.addmm_(logit_gradient, hidden)
    product = _product_in_fp32(logit_gradient, hidden)
    return product if total is None else total.add_(product)


def _product_in_fp32(a: Tensor, b: Tensor) -> Tensor:
    """Multiply 16-bit matrices and sum in fp32: the sum over all rows with a frequent token can overflow fp16."""
    if has_fp32_products(a):
        return torch.mm(a, b, out_dtype=torch.float32)
    if a.dtype == torch.float16:
        a, b = a.float(), b.float()
    return (a @ b).float()
