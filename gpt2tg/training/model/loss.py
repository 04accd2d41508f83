"""The loss of a language model without its logits: cross entropy in pieces, with the gradients made on the way.

The logits of a batch, a number for each token and each entry of the vocabulary, are by far the largest tensor of a
step, and torch would hold it three times: as it is, as log-probabilities, and as a gradient. Here a piece of the rows
is taken at a time, and only what it adds to the two gradients is kept. As in Liger Kernel (Hsu et al. 2024).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from gpt2tg.training.data.blocks import NO_LOSS

# Rows whose logits are there at a time: 206 MB for GPT-2's vocabulary, and products that keep a GPU busy.
ROWS = 1024

# In 16 bits a GPU multiplies fast only where the vocabulary is a multiple of this, which 50,257 is not.
MULTIPLE = 64


@torch.compiler.disable
def next_token_loss(hidden: Tensor, weight: Tensor, labels: Tensor, count: Tensor | int | None = None) -> Tensor:
    """Cross entropy of the next tokens in nats: the sum divided by `count`, or the mean where that is None.

    torch.compile leaves it as it is: it makes its gradients in place, and is products for the most part.

    Args:
        hidden: (B, T, W) what the output layer reads.
        weight: (V, W) the output layer.
        labels: (B, T) not shifted; NO_LOSS where a token carries none.
    """
    told = F.pad(labels[:, 1:], (0, 1), value=NO_LOSS).flatten()  # (B·T,)
    if count is None:
        count = (told != NO_LOSS).sum()
    return LinearCrossEntropy.apply(hidden.flatten(0, 1), weight, told, torch.is_grad_enabled()) / count


class LinearCrossEntropy(torch.autograd.Function):
    """The sum of -log softmax(hidden @ weight.T)[label] over the rows that have a label.

    Where autocast is on, what is multiplied is in its 16 bits. Probabilities, the loss and the weight's gradient are in
    32: that gradient is made before the loss is scaled, so that a smaller scale could not save it from an overflow.
    """

    @staticmethod
    def forward(context: Any, hidden: Tensor, weight: Tensor, labels: Tensor, learns: bool) -> Tensor:
        """hidden: (N, W), weight: (V, W), labels: (N,) → ()"""
        context.types, context.vocabulary = (hidden.dtype, weight.dtype), len(weight)
        wanted = [learns and needed for needed in context.needs_input_grad[:2]]
        device = hidden.device.type
        if torch.is_autocast_enabled(device):
            half = torch.get_autocast_dtype(device)
            hidden, weight = hidden.to(half), weight.to(half)
            if extra := padding(len(weight), device):
                weight = F.pad(weight, (0, 0, 0, extra))
        with torch.autocast(device, enabled=False):
            loss, *gradients = _loss_and_gradients(hidden, weight, labels, context.vocabulary, *wanted)
        context.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Both are there already, and large: they are scaled in place."""
        to_hidden, to_weight = (
            None if made is None else made.to(kind).mul_(gradient)
            for made, kind in zip(context.saved_tensors, context.types, strict=True)
        )
        return to_hidden, None if to_weight is None else to_weight[: context.vocabulary], None, None


def padding(vocabulary: int, device: str) -> int:
    """Rows of zeros that are added to the output layer while the loss is computed."""
    return -vocabulary % MULTIPLE if device == "cuda" else 0


def _loss_and_gradients(
    hidden: Tensor, weight: Tensor, labels: Tensor, vocabulary: int, to_hidden: bool, to_weight: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss, and the gradients that are wanted. Rows of the weight beyond the vocabulary are padding."""
    loss = torch.zeros((), dtype=_exact(hidden), device=hidden.device)
    hidden_gradient = torch.empty_like(hidden) if to_hidden else None
    weight_gradient = None
    for start in range(0, len(hidden), ROWS):
        piece = slice(start, start + ROWS)
        log_probabilities = _log_probabilities(hidden[piece], weight, vocabulary)
        loss += F.nll_loss(log_probabilities, labels[piece], ignore_index=NO_LOSS, reduction="sum")
        if not (to_hidden or to_weight):
            continue
        errors = _errors(log_probabilities, labels[piece]).to(hidden.dtype)
        del log_probabilities
        has_label = (labels[piece] != NO_LOSS)[:, None]
        if hidden_gradient is not None:
            torch.mm(errors, weight, out=hidden_gradient[piece]).mul_(has_label)
        if to_weight:
            weight_gradient = _added(weight_gradient, errors.T, hidden[piece] * has_label)
        del errors
    return loss, hidden_gradient, weight_gradient


def _exact(x: Tensor) -> torch.dtype:
    """What sums over many tokens are kept in: 32 bits, or more."""
    return torch.promote_types(x.dtype, torch.float32)


def _log_probabilities(hidden: Tensor, weight: Tensor, vocabulary: int) -> Tensor:
    """(R, V) of each token at each row, in 32 bits."""
    logits = hidden @ weight.T
    logits[:, vocabulary:] = -torch.inf
    if logits.device.type == "cpu":  # there log_softmax would make the same copy and keep both
        logits = logits.to(_exact(logits))
    return F.log_softmax(logits, dim=1, dtype=_exact(logits))


def _errors(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """The gradient at the logits, made in place: (R, V). Rows without a label are not zero."""
    errors = log_probabilities.exp_()
    errors[torch.arange(len(labels), device=labels.device), labels.clamp(min=0)] -= 1
    return errors


def _added(total: Tensor | None, errors: Tensor, hidden: Tensor) -> Tensor:
    """What the pieces so far add to the weight's gradient, and what this one does.

    Args:
        total: (V, W) in 32 bits; changed.
        errors: (V, R) the gradient at the logits.
        hidden: (R, W)
    """
    if errors.dtype == _exact(errors):
        return errors @ hidden if total is None else total.addmm_(errors, hidden)
    part = _product_in_32_bits(errors, hidden)
    return part if total is None else total.add_(part)


def _product_in_32_bits(a: Tensor, b: Tensor) -> Tensor:
    """Of matrices in 16 bits. A frequent token's sum over a thousand rows may be more than fp16 can hold."""
    if a.is_cuda and torch.version.hip is None:
        return torch.mm(a, b, out_dtype=torch.float32)
    if a.dtype == torch.float16:
        a, b = a.float(), b.float()
    return (a @ b).float()
