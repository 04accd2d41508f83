"""The decoding loop and the draws, on scripted logits with known results."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from gpt2tg.decoding import filters, sampling
from gpt2tg.decoding.interface import NotFiniteError, Token

END = 0


class Script:
    """A model whose logits depend on the last token alone. Records its calls."""

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self.read: list[list[int]] = []
        self.batch_sizes: list[int] = []

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        self.read = [list(prompt) for prompt in prompts]
        return self.table[[prompt[-1] for prompt in prompts]]

    def step(self, tokens: Tensor) -> Tensor:
        self.batch_sizes.append(len(tokens))
        assert len(self.batch_sizes) < 100, "the texts do not end"
        return self.table[tokens]

    def select(self, rows: Sequence[int]) -> None:
        pass


def countdown() -> Tensor:
    """Return logits with which token t is followed by t - 1, down to the end token."""
    table = torch.full((6, 6), -5.0)
    for token in range(1, 6):
        table[token, token - 1] = 5.0
    return table


def at_end(sample: int, ids: Sequence[int]) -> str | None:
    return "eos" if ids[-1] == END else None


def ids_of(tokens: Sequence[Token], sample: int) -> list[int]:
    return [token.id for token in tokens if token.sample == sample]


def test_greedy_follows_the_highest_logit_until_the_end() -> None:
    tokens = list(sampling.decode(Script(countdown()), [[4]], [0], [], sampling.most_probable, at_end))
    assert ids_of(tokens, 0) == [3, 2, 1, 0]
    assert [token.finish_reason for token in tokens] == [None, None, None, "eos"]


def test_finished_samples_leave_the_batch() -> None:
    script = Script(countdown())
    tokens = list(sampling.decode(script, [[2], [5], [3]], [0, 1, 2], [], sampling.most_probable, at_end))
    assert [ids_of(tokens, sample) for sample in range(3)] == [[1, 0], [4, 3, 2, 1, 0], [2, 1, 0]]
    assert script.batch_sizes == [3, 2, 1, 1]


def test_each_sample_has_its_own_finish() -> None:
    def finish(sample: int, ids: Sequence[int]) -> str | None:
        return "length" if len(ids) == [3, 1, 2][sample] else None

    tokens = list(sampling.decode(Script(countdown()), [[5]], [0, 0, 0], [], sampling.most_probable, finish))
    assert [ids_of(tokens, sample) for sample in range(3)] == [[4, 3, 2], [4], [4, 3]]


def test_prompt_is_prefilled_once_for_all_its_samples() -> None:
    script = Script(countdown())
    tokens = list(sampling.decode(script, [[3]], [0] * 20, [], sampling.most_probable, at_end))
    assert script.read == [[3]]
    assert all(ids_of(tokens, sample) == [2, 1, 0] for sample in range(20))


def test_logprob_is_the_models_own_before_filters() -> None:
    table = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log().repeat(4, 1)
    (token,) = sampling.decode(
        Script(table), [[1]], [0], [lambda x, _: filters.top_k(x, 1)], sampling.most_probable, lambda *_: "length"
    )
    assert token.id == 3
    assert token.logprob == pytest.approx(torch.tensor(0.4).log().item())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_raise_and_name_the_step(bad: float) -> None:
    table = countdown()
    table[2, 4] = bad
    with pytest.raises(NotFiniteError, match="new token 3"):
        list(sampling.decode(Script(table), [[4]], [0], [], sampling.most_probable, at_end))


@pytest.mark.parametrize(
    ("uniform", "token"),
    [(0.0, 1), (0.199, 1), (0.2, 2), (0.699, 2), (0.7, 4), (0.999999, 4)],
)
def test_inverse_distribution_by_hand(uniform: float, token: int) -> None:
    """Probabilities 0, 0.2, 0.5, 0, 0.3: the borders are 0.2 and 0.7, and the zeros are never drawn."""
    probabilities = torch.tensor([[0.0, 0.2, 0.5, 0.0, 0.3]], dtype=torch.float64)
    assert sampling.inverse_distribution(probabilities, torch.tensor([uniform], dtype=torch.float64)).item() == token


def test_largest_uniform_number_draws_a_valid_token() -> None:
    nearly_one = torch.tensor([1 - 2**-53], dtype=torch.float64)
    for size in (3, 7, 50257):
        probabilities = torch.full((1, size), 1 / size)
        probabilities[0, -1] = 0
        assert sampling.inverse_distribution(probabilities, nearly_one).item() == size - 2


class Fixed(random.Random):
    """A random number generator that always returns the same number."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def random(self) -> float:
        return self.number


def test_draw_uses_the_uniform_number_in_float64() -> None:
    """float32 would round the numbers to the border between the two tokens; also the largest number."""
    border = 0.75
    logits = torch.tensor([[border, 1 - border]], dtype=torch.float64).log()
    for uniform, token in [(border - 1e-9, 0), (border + 1e-9, 1), (1 - 2**-53, 1)]:
        assert sampling.Draw([Fixed(uniform)])(logits, [0]).tolist() == [token]


def test_streams_depend_on_seed_prompt_and_sample_alone() -> None:
    first = {
        (seed, prompt, sample): sampling.stream(seed, prompt, sample).random()
        for seed in (0, 1, 11)
        for prompt in (0, 1, 11)
        for sample in (0, 1, 11)
    }
    assert len(set(first.values())) == len(first)
    assert all(sampling.stream(*key).random() == value for key, value in first.items())


def test_draws_of_a_sample_do_not_depend_on_the_batch() -> None:
    table = torch.randn(8, 8, generator=torch.Generator().manual_seed(3))
    prompts = [[1], [2, 3], [4]]

    def write(owners: list[int]) -> dict[int, list[int]]:
        draw = sampling.Draw([sampling.stream(5, owner, 0) for owner in owners])

        def finish(sample: int, ids: Sequence[int]) -> str | None:
            return at_end(sample, ids) or ("length" if len(ids) == 30 else None)

        tokens = list(sampling.decode(Script(table), prompts, owners, [], draw, finish))
        return {owner: ids_of(tokens, sample) for sample, owner in enumerate(owners)}

    together = write([0, 1, 2])
    assert together == {**write([2]), **write([0]), **write([1])}
    assert together == write([2, 0, 1])


@pytest.mark.parametrize("draws", [False, True])
def test_text_ends_when_everything_is_banned(draws: bool) -> None:
    """After token 2 everything is banned. Rows that reach it end, the others go on."""
    script = Script(countdown())
    dead_end = [lambda x, texts: filters.ban(x, [n for n, text in enumerate(texts) if text.ids[-1] == 2], range(6))]
    choose = sampling.Draw([random.Random(n) for n in range(3)]) if draws else sampling.most_probable
    table = script.table
    table[table < 0] = -torch.inf
    tokens = list(sampling.decode(script, [[4], [1], [3]], [0, 1, 2], dead_end, choose, at_end))
    assert [ids_of(tokens, sample) for sample in range(3)] == [[3, 2, None], [0], [2, None]]
    assert [(token.sample, token.finish_reason) for token in tokens if token.finish_reason] == [
        (1, "eos"),
        (2, "banned"),
        (0, "banned"),
    ]
    assert script.batch_sizes == [2, 1]
