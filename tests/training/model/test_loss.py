"""The chunked loss, compared with torch's cross entropy of all logits and its gradients."""

from __future__ import annotations

import types

import pytest
import torch
from conftest import random_model
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2LMHeadModel

from gpt2tg.training.data.blocks import NO_LOSS
from gpt2tg.training.model import loss
from gpt2tg.training.model.build import for_training
from gpt2tg.training.model.loss import next_token_loss

BATCH, TIME, WIDTH, VOCABULARY = 3, 7, 8, 31


def example(seed: int, share_without: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states, an output layer, and labels, some of which carry no loss."""
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(BATCH, TIME, WIDTH, generator=random).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=random).requires_grad_()
    labels = torch.randint(0, VOCABULARY, (BATCH, TIME), generator=random)
    return hidden, weight, labels.masked_fill(torch.rand(BATCH, TIME, generator=random) < share_without, NO_LOSS)


def whole(hidden: Tensor, weight: Tensor, labels: Tensor, count: Tensor | None) -> Tensor:
    """Return the loss of all logits by torch, in fp64."""
    logits = (hidden.double() @ weight.double().T)[:, :-1].flatten(0, 1)
    targets = labels[:, 1:].flatten()
    total = F.cross_entropy(logits, targets, ignore_index=NO_LOSS, reduction="sum")
    return total / ((targets != NO_LOSS).sum() if count is None else count)


@pytest.mark.parametrize("rows", [1, 4, 7, 20, 21, 100])
@pytest.mark.parametrize("count", [None, torch.tensor(50)], ids=["mean", "over 50"])
def test_loss_and_gradients_match_full_logits(monkeypatch: pytest.MonkeyPatch, rows: int, count: Tensor | None) -> None:
    monkeypatch.setattr(loss, "ROWS", rows)
    hidden, weight, labels = example(rows)
    expected = whole(hidden, weight, labels, count)
    found = next_token_loss(hidden, weight, labels, count)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(
        torch.autograd.grad(2 * found, (hidden, weight)),
        torch.autograd.grad(2 * expected, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_ignored_labels_contribute_nothing() -> None:
    hidden, weight, labels = example(1, share_without=0)
    labels[1] = NO_LOSS
    found = next_token_loss(hidden, weight, labels, 10)
    (gradient,) = torch.autograd.grad(found, hidden)
    assert gradient[1].abs().max() == 0
    assert gradient[0].abs().max() > 0
    assert next_token_loss(hidden, weight, torch.full_like(labels, NO_LOSS), 10) == 0


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_frozen_tensors_get_no_gradient(frozen: str) -> None:
    hidden, weight, labels = example(2)
    learning = weight if frozen == "hidden" else hidden
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    (found,) = torch.autograd.grad(next_token_loss(hidden, weight, labels), learning)
    (expected,) = torch.autograd.grad(whole(hidden, weight, labels, None), learning)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert not next_token_loss(hidden, weight, labels).requires_grad


@pytest.mark.parametrize("extra", [0, 33])
def test_loss_in_bf16_is_close_with_and_without_padding(monkeypatch: pytest.MonkeyPatch, extra: int) -> None:
    monkeypatch.setattr(loss, "padding", lambda vocabulary, device: extra)
    monkeypatch.setattr(loss, "ROWS", 5)
    hidden, weight, labels = example(3)
    expected = whole(hidden, weight, labels, None)
    with torch.autocast("cpu", torch.bfloat16):
        found = next_token_loss(hidden, weight, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.02)
    gradients = torch.autograd.grad(found, (hidden, weight))
    assert [gradient.dtype for gradient in gradients] == [torch.float32] * 2
    for mine, theirs in zip(gradients, torch.autograd.grad(expected, (hidden, weight)), strict=True):
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine, theirs, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("extra", [0, 33])
def test_logits_of_16_bit_factors_are_not_rounded(
    monkeypatch: pytest.MonkeyPatch, half: torch.dtype, extra: int
) -> None:
    """As on a CUDA GPU, with logits as low as GPT-2's: the error is that of fp32. In bf16 it would be about 0.1."""
    plainly = torch.mm

    def product(a: Tensor, b: Tensor, out_dtype: torch.dtype | None = None, out: Tensor | None = None) -> Tensor:
        return plainly(a, b, out=out) if out_dtype is None else plainly(a.to(out_dtype), b.to(out_dtype))

    monkeypatch.setattr(loss, "has_fp32_products", lambda x: True)
    monkeypatch.setattr(loss, "padding", lambda vocabulary, device: extra)
    monkeypatch.setattr(torch, "mm", product)
    hidden, weight, labels = (tensor.detach() for tensor in example(4))
    hidden[..., 0], weight[:, 0] = 10, -10
    expected = whole(hidden.to(half), weight.to(half), labels, None)
    with torch.autocast("cpu", half):
        found = next_token_loss(hidden.requires_grad_(), weight.requires_grad_(), labels)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(found, (hidden, weight)))


def test_products_in_fp32_are_those_of_cublas(monkeypatch: pytest.MonkeyPatch) -> None:
    """ROCm calls its GPUs "cuda" too, and has no such product."""
    on_gpu = types.SimpleNamespace(is_cuda=True)
    monkeypatch.setattr(torch.version, "hip", None)
    assert loss.has_fp32_products(on_gpu)
    assert not loss.has_fp32_products(torch.zeros(1))
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert not loss.has_fp32_products(on_gpu)


def test_sum_over_many_tokens_does_not_overflow_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of a token that follows a thousand large hidden states exceeds the range of fp16."""
    hidden, weight = torch.full((1, 1025, WIDTH), 90.0), torch.zeros(VOCABULARY, WIDTH)
    hidden.requires_grad_(), weight.requires_grad_()
    labels = torch.full((1, 1025), 3)
    with torch.autocast("cpu", torch.float16):
        found = next_token_loss(hidden, weight, labels, 1)
    (gradient,) = torch.autograd.grad(found, weight)
    (expected,) = torch.autograd.grad(whole(hidden, weight, labels, torch.tensor(1)), weight)
    assert expected.abs().max() > torch.finfo(torch.float16).max
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=10)


def test_vocabulary_is_padded_on_a_gpu_alone() -> None:
    assert loss.padding(50257, "cuda") == 47
    assert loss.padding(50304, "cuda") == 0
    assert loss.padding(50257, "cpu") == 0


@pytest.mark.parametrize("tied", [True, False])
def test_model_has_loss_and_gradients_of_transformers(tied: bool) -> None:
    """Compares the loss and every gradient, with tied weights too; no logits are returned."""

    def model() -> GPT2LMHeadModel:
        return random_model(tie_word_embeddings=tied, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0).train()

    theirs, ours = model(), for_training(model())
    ours.load_state_dict(theirs.state_dict())
    ids = torch.randint(0, theirs.config.vocab_size, (2, 12), generator=torch.Generator().manual_seed(1))
    expected = theirs(ids, labels=ids)
    found = ours(ids, labels=ids)
    assert found.logits is None
    torch.testing.assert_close(found.loss, expected.loss)
    expected.loss.backward()
    found.loss.backward()
    gradients = {name: weight.grad for name, weight in ours.named_parameters()}
    for name, weight in theirs.named_parameters():
        torch.testing.assert_close(
            gradients[name], weight.grad, rtol=1e-4, atol=1e-6, msg=lambda message, n=name: f"{n}: {message}"
        )


def test_model_returns_logits_without_labels() -> None:
    model = random_model().eval()
    ids = torch.arange(6)[None]
    with torch.no_grad():
        expected = model(ids).logits
        torch.testing.assert_close(for_training(model)(ids).logits, expected)
