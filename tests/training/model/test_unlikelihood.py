"""The loss on repeated n-grams, compared with its definition on all logits and torch's own gradients."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from conftest import random_model
from test_loss import VOCABULARY, WIDTH
from torch import Tensor
from torch.nn import functional as F

from gpt2tg.training.data.blocks import NO_LOSS
from gpt2tg.training.model import loss
from gpt2tg.training.model.build import for_training
from gpt2tg.training.model.loss import next_token_loss
from gpt2tg.training.model.unlikelihood import NONE, Unlikelihood, repeating_tokens

ALPHA = 0.7

# 1 2 was followed by 3, and then by 4. The second block has two examples, the second from the fourth token on.
TOKENS = torch.tensor([[1, 2, 3, 1, 2, 4, 1, 2, 5], [1, 2, 3, 1, 2, 1, 2, 1, 2]])
POSITIONS = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 0, 1, 2, 3, 4, 5]])
CANDIDATES = [[NONE, NONE, NONE, NONE, 3, NONE, NONE, 4, NONE], [NONE, NONE, NONE, NONE, NONE, NONE, 1, 2, 1]]


def test_candidate_followed_the_last_occurrence_of_the_same_two_tokens() -> None:
    assert repeating_tokens(TOKENS, POSITIONS).tolist() == CANDIDATES
    assert repeating_tokens(TOKENS[:1], None).tolist() == CANDIDATES[:1]


def by_search(tokens: Sequence[int], positions: Sequence[int], place: int) -> int:
    """Return the candidate of one position, from the definition."""
    begin = place - positions[place]
    for end in range(place - 1, begin, -1):
        if list(tokens[end - 1 : end + 1]) == list(tokens[place - 1 : place + 1]):
            return tokens[end + 1]
    return NONE


def test_candidates_of_random_texts_match_a_search() -> None:
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 3, (20, 30), generator=random)
    starts = torch.rand(20, 30, generator=random) < 0.1
    starts[:, 0] = True
    positions = torch.arange(30) - (torch.arange(30) * starts).cummax(dim=1).values
    expected = [
        [by_search(row, places, place) for place in range(30)]
        for row, places in zip(tokens.tolist(), positions.tolist(), strict=True)
    ]
    assert repeating_tokens(tokens, positions).tolist() == expected


def by_definition(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Return the summed loss of all logits in fp64, one position after the other."""
    logits = (hidden.double() @ weight.double().T)[:, :-1]
    targets = labels[:, 1:]
    total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=NO_LOSS, reduction="sum")
    probabilities = logits.softmax(dim=2)
    for block, candidates in enumerate(CANDIDATES):
        for place, candidate in enumerate(candidates[:-1]):
            if candidate != NONE and targets[block, place] not in (candidate, NO_LOSS):
                total = total - ALPHA * (1 - probabilities[block, place, candidate]).log()
    return total


@pytest.mark.parametrize("rows", [1, 4, 7, 100])
@pytest.mark.parametrize("without", [None, 7])
def test_loss_and_gradients_match_the_definition(
    monkeypatch: pytest.MonkeyPatch, rows: int, without: int | None
) -> None:
    monkeypatch.setattr(loss, "ROWS", rows)
    random = torch.Generator().manual_seed(rows)
    hidden = torch.randn(*TOKENS.shape, WIDTH, generator=random).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=random).requires_grad_()
    labels = TOKENS.clone()
    if without is not None:
        labels[:, without] = NO_LOSS
    found = next_token_loss(hidden, weight, labels, 10, Unlikelihood.of(ALPHA, TOKENS, POSITIONS))
    expected = by_definition(hidden, weight, labels) / 10
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(
        torch.autograd.grad(3 * found, (hidden, weight)),
        torch.autograd.grad(3 * expected, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_certain_repetition_keeps_loss_and_gradient_finite() -> None:
    hidden, weight = torch.full((1, 6, WIDTH), 9.0), torch.zeros(VOCABULARY, WIDTH)
    weight[3] = 9
    hidden.requires_grad_()
    tokens = TOKENS[:1, :6]
    found = next_token_loss(hidden, weight, tokens, 1, Unlikelihood.of(1.0, tokens, None))
    (gradient,) = torch.autograd.grad(found, hidden)
    assert found.isfinite()
    assert gradient.isfinite().all()


def test_evaluation_measures_the_plain_loss() -> None:
    """Validation losses stay comparable with those of other runs."""
    plain, model = (random_model(attn_pdrop=0, resid_pdrop=0, embd_pdrop=0) for _ in range(2))
    for_training(model, ALPHA)
    plain_loss = for_training(plain).eval()(TOKENS, labels=TOKENS).loss
    assert model.eval()(TOKENS, labels=TOKENS).loss == plain_loss
    assert model.train()(TOKENS, labels=TOKENS).loss > plain_loss
