"""Contrastive search against a plain computation without a cache."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from transformers import GPT2LMHeadModel

from gpt2tg.decoding import filters, sampling
from gpt2tg.decoding.contrastive import contrastive_search
from gpt2tg.engine.model import GPT2


def by_the_paper(model: GPT2LMHeadModel, prompt: list[int], top_k: int, alpha: float, room: int) -> list[int]:
    """Su et al. 2022, equation 5, everything computed anew for every candidate."""
    ids = list(prompt)
    for _ in range(room):
        with torch.no_grad():
            output = model(torch.tensor([ids]), output_hidden_states=True)
        before = output.hidden_states[-1][0]
        probabilities, candidates = output.logits[0, -1].softmax(dim=0).topk(top_k)
        scores = []
        for probability, candidate in zip(probabilities, candidates.tolist(), strict=True):
            with torch.no_grad():
                state = model(torch.tensor([[*ids, candidate]]), output_hidden_states=True).hidden_states[-1][0, -1]
            resemblance = torch.cosine_similarity(before, state[None]).max()
            scores.append(((1 - alpha) * probability - alpha * resemblance).item())
        ids.append(candidates[scores.index(max(scores))].item())
        if ids[-1] == 0:
            break
    return ids[len(prompt) :]


def finish_at(room: int) -> object:
    return lambda _, ids: "eos" if ids[-1] == 0 else "length" if len(ids) == room else None


@pytest.mark.parametrize(("top_k", "alpha"), [(4, 0.6), (2, 0.9), (8, 0.3), (1, 0.5)])
def test_ids_equal_the_paper(gpt2: GPT2, reference: GPT2LMHeadModel, top_k: int, alpha: float) -> None:
    prompts: Sequence[list[int]] = [[5, 9, 17], [40], [7, 7, 8, 120, 33]]
    written: dict[int, list[int]] = {0: [], 1: [], 2: []}
    rows = gpt2.context(20, keep_hidden=True)
    for token in contrastive_search(rows, prompts, [], top_k, alpha, finish_at(12)):  # type: ignore[arg-type]
        written[token.sample].append(token.id)
    assert list(written.values()) == [by_the_paper(reference, prompt, top_k, alpha, 12) for prompt in prompts]


def test_without_weight_on_resemblance_it_is_greedy(gpt2: GPT2) -> None:
    prompt = [5, 9, 17]
    rows = gpt2.context(20, keep_hidden=True)
    contrastive = [t.id for t in contrastive_search(rows, [prompt], [], 5, 0.0, finish_at(12))]  # type: ignore[arg-type]
    greedy = sampling.decode(gpt2.context(20), [prompt], [0], [], sampling.most_probable, finish_at(12))  # type: ignore[arg-type]
    assert contrastive == [token.id for token in greedy]


def test_a_banned_token_is_never_chosen(gpt2: GPT2) -> None:
    """Even where the ban leaves fewer tokens than candidates are wanted."""
    only = [lambda x, _: filters.ban(x, range(len(x)), [i for i in range(300) if i not in (3, 4)])]
    rows = gpt2.context(20, keep_hidden=True)
    tokens = contrastive_search(rows, [[5]], only, 8, 0.6, finish_at(10))  # type: ignore[arg-type]
    assert {token.id for token in tokens} <= {3, 4}
