"""Contrastive search against a plain computation without a cache."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from gpt2tg.decoding import filters, sampling
from gpt2tg.decoding.contrastive import contrastive_search
from gpt2tg.decoding.interface import NotFiniteError
from gpt2tg.engine.contexts import new_context
from gpt2tg.engine.model import GPT2


class Script:
    """A model whose logits and hidden states depend on the newest token alone."""

    def __init__(self, logits: Tensor, states: Tensor) -> None:
        self._logits = logits
        self._states = states
        self._read: list[list[int]] = []
        self._steps = 0

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        self._read = [list(prompt) for prompt in prompts]
        return self._logits[[prompt[-1] for prompt in prompts]]

    def step(self, tokens: Tensor) -> Tensor:
        self._steps += 1
        assert self._steps < 100, "the texts do not end"
        self._read = [[token] for token in tokens.tolist()]
        return self._logits[tokens]

    def select(self, rows: Sequence[int]) -> None:
        pass

    def hidden(self) -> list[Tensor]:
        return [self._states[ids] for ids in self._read]


def by_the_paper(model: GPT2LMHeadModel, prompt: list[int], top_k: int, alpha: float, room: int) -> list[int]:
    """Return new ids by equation 5 of Su et al. 2022, with a full forward pass for every candidate."""
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
    rows = new_context(gpt2, 20, keep_hidden=True)
    for token in contrastive_search(rows, prompts, [], top_k, alpha, finish_at(12)):  # type: ignore[arg-type]
        written[token.sample].append(token.id)
    assert list(written.values()) == [by_the_paper(reference, prompt, top_k, alpha, 12) for prompt in prompts]


def test_penalty_alpha_zero_is_greedy(gpt2: GPT2) -> None:
    prompt = [5, 9, 17]
    rows = new_context(gpt2, 20, keep_hidden=True)
    contrastive = [t.id for t in contrastive_search(rows, [prompt], [], 5, 0.0, finish_at(12))]  # type: ignore[arg-type]
    greedy = sampling.decode(new_context(gpt2, 20), [prompt], [0], [], sampling.most_probable, finish_at(12))  # type: ignore[arg-type]
    assert contrastive == [token.id for token in greedy]


def test_banned_token_is_never_chosen(gpt2: GPT2) -> None:
    """Also if fewer tokens are allowed than `top_k` asks for."""
    only = [lambda x, _: filters.ban(x, range(len(x)), [i for i in range(300) if i not in (3, 4)])]
    rows = new_context(gpt2, 20, keep_hidden=True)
    tokens = contrastive_search(rows, [[5]], only, 8, 0.6, finish_at(10))  # type: ignore[arg-type]
    assert {token.id for token in tokens} <= {3, 4}


def test_dissimilar_token_is_not_chosen_if_banned() -> None:
    """Tokens 1 and 2 have the state of the prompt. Token 3 has another one, but is banned. All four are candidates."""
    logits = torch.tensor([0.0, 0.4, 0.6, 0.9]).log().repeat(4, 1)
    states = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    banned = [lambda x, _: filters.ban(x, range(len(x)), [3])]
    (token,) = contrastive_search(Script(logits, states), [[1]], banned, 4, 0.9, lambda *_: "length")
    assert token.id == 2
    assert token.logprob == pytest.approx(torch.tensor(0.6 / 1.9).log().item())


def test_filters_and_finish_see_the_text_of_their_own_row() -> None:
    """No token may repeat, token 4 ends a text, and the second text has at most two tokens."""
    logits = torch.tensor([0.05, 0.1, 0.2, 0.4, 0.15, 0.1]).log().repeat(6, 1)
    once = [lambda x, texts: filters.no_repeat_ngram(x, [text.ids for text in texts], 1)]
    seen: list[tuple[int, list[int]]] = []

    def finish(sample: int, ids: Sequence[int]) -> str | None:
        seen.append((sample, list(ids)))
        return "eos" if ids[-1] == 4 and sample != 1 else "length" if sample == 1 and len(ids) == 2 else None

    tokens = list(contrastive_search(Script(logits, torch.eye(6)), [[1], [3], [5, 2]], once, 6, 0.0, finish))
    assert [[token.id for token in tokens if token.sample == sample] for sample in range(3)] == [
        [3, 2, 4],
        [2, 4],
        [3, 4],
    ]
    assert [token.finish_reason for token in tokens] == [None, None, None, None, "length", "eos", "eos"]
    assert seen == [(0, [3]), (1, [2]), (2, [3]), (0, [3, 2]), (1, [2, 4]), (2, [3, 4]), (0, [3, 2, 4])]


def test_text_ends_when_all_its_candidates_are_banned() -> None:
    """No token may repeat: the first text has used all after two tokens, the other one after three."""
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().repeat(4, 1)
    once = [lambda x, texts: filters.no_repeat_ngram(x, [text.ids for text in texts], 1)]
    tokens = list(contrastive_search(Script(logits, torch.eye(4)), [[0, 1], [1]], once, 3, 0.0, lambda *_: None))
    assert [[token.id for token in tokens if token.sample == sample] for sample in range(2)] == [
        [3, 2, None],
        [3, 2, 0, None],
    ]
    assert [token.finish_reason for token in tokens if token.finish_reason] == ["banned", "banned"]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_raise_and_name_the_step(bad: float) -> None:
    logits = torch.eye(4)[[1, 2, 3, 0]] * 9  # after 0 comes 1, after 1 comes 2
    logits[2, 0] = bad
    with pytest.raises(NotFiniteError, match="new token 3"):
        list(contrastive_search(Script(logits, torch.eye(4)), [[0]], [], 1, 0.5, lambda *_: None))
