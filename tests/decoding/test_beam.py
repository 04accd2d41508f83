"""Beam search against transformers, against an exhaustive search, and by hand."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from conftest import random_model
from torch import Tensor
from transformers import GPT2LMHeadModel, LogitsProcessor, LogitsProcessorList

from gpt2tg.decoding import beam, filters, sampling
from gpt2tg.decoding.interface import Filter, NotFiniteError, Text
from gpt2tg.engine.contexts import new_context
from gpt2tg.selftest import generator_of

END = 0


class Recount:
    """Rows without a cache: a function computes the logits from the whole text."""

    def __init__(self, logits_after: object) -> None:
        self.logits_after = logits_after
        self.texts: list[list[int]] = []

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        self.texts = [list(prompt) for prompt in prompts]
        return self._logits()

    def step(self, tokens: Tensor) -> Tensor:
        self.texts = [[*text, token] for text, token in zip(self.texts, tokens.tolist(), strict=True)]
        assert len(self.texts[0]) < 100, "the texts do not end"
        return self._logits()

    def select(self, rows: Sequence[int]) -> None:
        self.texts = [list(self.texts[row]) for row in rows]

    def _logits(self) -> Tensor:
        return torch.stack([self.logits_after(text) for text in self.texts])  # type: ignore[operator]


def by_last_two(vocabulary: int, seed: int) -> object:
    """Return a model with random logits that depend on the last two tokens."""
    table = torch.randn(vocabulary, vocabulary, vocabulary, generator=torch.Generator().manual_seed(seed)) * 1.5
    return lambda text: table[text[-2] if len(text) > 1 else 0, text[-1]]


def search(
    rows: object,
    prompts: list[list[int]],
    room: list[int],
    settings: beam.BeamSettings,
    filters: Sequence[Filter] = (),
    propose: beam.Propose = beam.best,
) -> list[list[beam.Hypothesis]]:
    """Return the finished texts of each prompt."""

    def finish(_: int, ids: Sequence[int]) -> str | None:
        return "eos" if ids[-1] == END else None

    found: dict[int, list[beam.Hypothesis]] = {}
    for index, one in beam.beam_search(rows, prompts, room, filters, settings, [propose] * len(prompts), finish):
        found[index] = one.finished
    return [found[index] for index in range(len(prompts))]


def all_texts(logits_after: object, prompt: list[int], vocabulary: int, room: int) -> dict[tuple[int, ...], float]:
    """Return every text that ends with the end token or has the maximum length, and its log-probability."""
    found: dict[tuple[int, ...], float] = {}

    def extend(ids: tuple[int, ...], logprob: float) -> None:
        if ids and (ids[-1] == END or len(ids) == room):
            found[ids] = logprob
            return
        logprobs = logits_after([*prompt, *ids]).log_softmax(dim=0).tolist()  # type: ignore[operator]
        for token in range(vocabulary):
            extend((*ids, token), logprob + logprobs[token])

    extend((), 0.0)
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_enough_beams_find_the_best_text(seed: int, length_penalty: float) -> None:
    vocabulary, room, prompt = 4, 5, [2]
    model = by_last_two(vocabulary, seed)
    texts = all_texts(model, prompt, vocabulary, room)
    settings = beam.BeamSettings(len(texts), early_stopping="never", length_penalty=length_penalty)
    (found,) = search(Recount(model), [prompt], [room], settings)
    best_ids, best_logprob = max(texts.items(), key=lambda item: item[1] / len(item[0]) ** length_penalty)
    assert found[0].ids == best_ids
    assert found[0].logprob == pytest.approx(best_logprob, abs=1e-4)
    assert found[0].ranking_score == pytest.approx(best_logprob / len(best_ids) ** length_penalty, abs=1e-4)


def test_beam_scores_are_exact_and_sorted() -> None:
    model = by_last_two(6, seed=9)
    texts = all_texts(model, [1], 6, 4)
    settings = beam.BeamSettings(4)
    (found,) = search(Recount(model), [[1]], [4], settings)
    assert len(found) == 4
    for text in found:
        assert text.logprob == pytest.approx(texts[text.ids], abs=1e-4)
    scores = [text.ranking_score for text in found]
    assert scores == sorted(scores, reverse=True)


def test_one_beam_by_hand() -> None:
    """After 1, token 2 has 0.6; after 2, the end has 0.9. One beam must find 2, end."""
    table = torch.tensor([[1.0, 0.0, 0.0], [0.3, 0.1, 0.6], [0.9, 0.05, 0.05]]).log()
    (found,) = search(Recount(lambda text: table[text[-1]]), [[1]], [5], beam.BeamSettings(1))
    assert [text.ids for text in found] == [(2, 0)]
    assert found[0].logprob == pytest.approx(torch.tensor(0.54).log().item(), abs=1e-5)
    assert found[0].finish_reason == "eos"


@pytest.mark.parametrize("early_stopping", ["true", "false", "never"])
@pytest.mark.parametrize("num_beams", [2, 3, 5])
@pytest.mark.parametrize("ngram", [0, 2])
@pytest.mark.parametrize("bias_to_end", [0.0, 3.0])
def test_beams_equal_transformers(early_stopping: str, num_beams: int, ngram: int, bias_to_end: float) -> None:
    """Ours: prompts of unequal lengths in one batch. Transformers: each alone, without padding."""
    model = random_model(seed=num_beams, vocab_size=60, tie_word_embeddings=False)
    with torch.no_grad():
        # A constant feature of the final layer norm raises the logit of the end token, so that texts end.
        model.transformer.ln_f.bias[0] = 1.0
        model.lm_head.weight[END, 0] = bias_to_end
    prompts = [[5], [7, 9, 11], [3, 3, 4, 50, 21, 8]]
    room = [12, 9, 15]
    settings = beam.BeamSettings(num_beams, early_stopping=early_stopping)
    chain = [lambda x, texts: filters.no_repeat_ngram(x, [t.ids for t in texts], ngram)] if ngram else []
    rows = new_context(generator_of(model).model, 32)
    found = search(rows, prompts, room, settings, chain)
    for prompt, space, texts in zip(prompts, room, found, strict=True):
        expected = beams_of_transformers(model, prompt, space, num_beams, early_stopping, ngram)
        assert [list(text.ids) for text in texts] == [ids for ids, _ in expected]
        scores = [text.ranking_score for text in texts]
        assert scores == pytest.approx([score for _, score in expected], abs=1e-4)


def beams_of_transformers(
    model: GPT2LMHeadModel, prompt: list[int], room: int, num_beams: int, early_stopping: str, ngram: int
) -> list[tuple[list[int], float]]:
    """Return the new ids, without padding, and the score of each beam."""
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        num_beams=num_beams,
        num_return_sequences=num_beams,
        do_sample=False,
        max_new_tokens=room,
        early_stopping={"true": True, "false": False, "never": "never"}[early_stopping],
        no_repeat_ngram_size=ngram,
        eos_token_id=END,
        pad_token_id=1,
        return_dict_in_generate=True,
        output_scores=True,
    )
    rows = output.sequences[:, len(prompt) :].tolist()
    texts = [row[: row.index(END) + 1] if END in row else row for row in rows]
    return list(zip(texts, output.sequences_scores.tolist(), strict=True))


def test_more_beams_than_texts_find_all_texts() -> None:
    settings = beam.BeamSettings(50)
    (found,) = search(Recount(by_last_two(3, 0)), [[1]], [3], settings)
    assert (
        len({text.ids for text in found}) == len(found) == 15
    )  # all texts: 1 + 2 + 4 end early, 8 have the maximum length


def test_logits_that_are_not_finite_raise() -> None:
    settings = beam.BeamSettings(2)
    with pytest.raises(NotFiniteError, match="new token 1"):
        search(Recount(lambda _: torch.full((4,), torch.nan)), [[1]], [3], settings)


def test_draws_without_replacement_follow_the_distribution() -> None:
    """Ordered pairs from three items: p(i, j) = p_i * p_j / (1 - p_i). Six outcomes, five degrees of freedom."""
    probabilities = {0: 0.5, 1: 0.3, 2: 0.2}
    scores = torch.tensor(list(probabilities.values())).log()
    draws = 20_000
    counts = Counter(
        tuple(beam.DrawWithoutReplacement(sampling.stream(3, 0, i))(scores, 2).tolist()) for i in range(draws)
    )
    statistic = 0.0
    for first, second in itertools.permutations(probabilities, 2):
        wanted = draws * probabilities[first] * probabilities[second] / (1 - probabilities[first])
        statistic += (counts[first, second] - wanted) ** 2 / wanted
    assert sum(counts.values()) == draws
    assert statistic < 20.515  # upper 0.1 % point of chi-square with 5 degrees of freedom


def test_draws_stop_when_nothing_is_left() -> None:
    scores = torch.tensor([0.0, -torch.inf, 1.0, -torch.inf])
    assert sorted(beam.DrawWithoutReplacement(random.Random(1))(scores, 4).tolist()) == [0, 2]


def test_uniform_zero_draws_no_token_of_probability_zero() -> None:
    class Zero(random.Random):
        def random(self) -> float:
            return 0.0

    scores = torch.tensor([-torch.inf, 0.0, -torch.inf, 1.0])
    assert beam.DrawWithoutReplacement(Zero())(scores, 4).tolist() == [1, 3]


def test_banned_token_is_never_chosen() -> None:
    """Also where fewer tokens are allowed than the search looks at."""
    ban = lambda scores, _: scores.index_fill(1, torch.tensor([END, 2, 3]), -torch.inf)  # noqa: E731
    (texts,) = search(Recount(by_last_two(5, 0)), [[2]], [6], beam.BeamSettings(4), [ban])
    assert len(texts) == 4
    assert {token for text in texts for token in text.ids} <= {1, 4}


def test_step_fetches_from_the_device_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[Tensor] = []
    genuine = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda self: (fetched.append(self), genuine(self))[1])
    endless = lambda scores, _: scores.index_fill(1, torch.tensor(END), -torch.inf)  # noqa: E731
    search(Recount(by_last_two(5, 0)), [[2]], [6], beam.BeamSettings(4), [endless])
    assert len(fetched) == 6 * 2 + 5  # the model above fetches the tokens of each step but the first


class DeadEnds(LogitsProcessor):
    """Bans everything after some tokens."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        dead = torch.tensor([ids[-1] in self.tokens for ids in input_ids.tolist()])
        return scores.masked_fill(dead[:, None], -torch.inf)


@pytest.mark.parametrize("early_stopping", ["true", "false", "never"])
@pytest.mark.parametrize("dead", [(3,), (1, 2, 5), (4, 6, 8, 9, 11)])
@pytest.mark.parametrize("seed", [1, 2])
def test_beam_with_all_tokens_banned_dies_as_in_transformers(
    dead: tuple[int, ...], early_stopping: str, seed: int
) -> None:
    model = random_model(seed, vocab_size=12, tie_word_embeddings=False)
    prompt, room, beams = [7, 10], 7, 4
    ends = DeadEnds(dead)
    chain = [lambda x, texts: ends(torch.tensor([text.ids for text in texts]), x)]
    settings = beam.BeamSettings(beams, early_stopping=early_stopping)
    (found,) = search(new_context(generator_of(model).model, 32), [prompt], [room], settings, chain)
    output = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, 2, dtype=torch.long), num_beams=beams,
        num_return_sequences=beams, do_sample=False, max_new_tokens=room, logits_processor=LogitsProcessorList([ends]),
        early_stopping={"true": True, "false": False, "never": "never"}[early_stopping],
        eos_token_id=END, pad_token_id=1, output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    rows = zip(output.sequences[:, 2:].tolist(), output.sequences_scores.tolist(), strict=True)
    expected = [(ids[: ids.index(END) + 1] if END in ids else ids, score) for ids, score in rows if score > -1e8]
    finished = [text for text in found if text.finish_reason != "banned"]
    assert [list(text.ids) for text in finished] == [ids for ids, _ in expected]
    assert [text.ranking_score for text in finished] == pytest.approx([score for _, score in expected], abs=1e-4)


@pytest.mark.parametrize("groups", [1, 2])
def test_dead_beams_are_returned_as_banned(groups: int) -> None:
    """Three tokens besides the end token, each allowed once: after the third, everything is banned."""
    once = [lambda x, texts: filters.no_repeat_ngram(x, [text.ids for text in texts], 1)]
    settings = beam.BeamSettings(2, groups=groups)
    (found,) = search(Recount(by_last_two(4, seed=1)), [[END]], [9], settings, once)
    assert {text.finish_reason for text in found} == {"banned"}
    assert [sorted(text.ids) for text in found] == [[1, 2, 3]] * 2


@pytest.mark.parametrize("draws", [False, True])
def test_search_is_empty_if_all_first_tokens_are_banned(draws: bool) -> None:
    nothing = [lambda x, _: torch.full_like(x, -torch.inf)]
    propose = beam.DrawWithoutReplacement(random.Random(1)) if draws else beam.best
    (found,) = search(Recount(by_last_two(4, seed=1)), [[1]], [9], beam.BeamSettings(3), nothing, propose)
    assert [(text.ids, text.finish_reason) for text in found] == [((), "banned")]


def test_filters_see_the_new_tokens_of_each_beam() -> None:
    """No text may end before its third new token, whatever the length of its prompt."""

    def late(logits: Tensor, texts: Sequence[Text]) -> Tensor:
        return filters.ban(logits, [row for row, text in enumerate(texts) if len(text.new) < 2], [END])

    eager = torch.tensor([5.0, 1.0, 0.5, 0.0])
    for texts in search(Recount(lambda _: eager), [[1], [2, 1, 3, 2]], [5, 5], beam.BeamSettings(2), [late]):
        assert min(len(text.ids) for text in texts) == 3


# --- diverse beam search ------------------------------------------------------------------------------------------


def diverse_by_the_paper(
    logits_after: object, prompt: list[int], room: int, groups: int, size: int, penalty: float
) -> list[tuple[tuple[int, ...], float]]:
    """Vijayakumar et al. 2018, algorithm 1, with plain lists; texts end in END or at the limit. (ids, mean score)"""
    live = [[((), 0.0)] for _ in range(groups)]
    done: list[list[tuple[tuple[int, ...], float]]] = [[] for _ in range(groups)]
    over = [False] * groups
    for length in range(1, room + 1):
        taken: Counter[int] = Counter()
        for group in range(groups):
            if over[group]:
                continue
            pool = []
            for ids, score in live[group]:
                logprobs = logits_after([*prompt, *ids]).log_softmax(dim=0).tolist()  # type: ignore[operator]
                pool += [
                    ((*ids, token), score + logprob - penalty * taken[token]) for token, logprob in enumerate(logprobs)
                ]
            pool = sorted(pool, key=lambda item: -item[1])[: 2 * size]
            for ids, score in pool[:size]:
                if ids[-1] == END or length == room:
                    done[group].append((ids, score / length))
            done[group] = sorted(done[group], key=lambda item: -item[1])[:size]
            live[group] = [item for item in pool if item[0][-1] != END and length < room][:size]
            full = len(done[group]) == size
            over[group] = not live[group] or (full and live[group][0][1] / length <= done[group][-1][1])
            if not over[group]:  # the tokens of a finished group cost the other groups nothing
                taken.update(ids[-1] for ids, _ in live[group])
    return sorted((item for group in done for item in group), key=lambda item: -item[1])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("groups", "size", "penalty"), [(3, 1, 0.7), (2, 2, 1.5), (2, 3, 0.2), (4, 1, 5.0)])
def test_diverse_beams_equal_the_paper(seed: int, groups: int, size: int, penalty: float) -> None:
    model = by_last_two(6, seed)
    settings = beam.BeamSettings(groups * size, groups=groups, diversity_penalty=penalty)
    (found,) = search(Recount(model), [[2]], [6], settings)
    expected = diverse_by_the_paper(model, [2], 6, groups, size, penalty)
    assert [text.ids for text in found] == [ids for ids, _ in expected]
    assert [text.ranking_score for text in found] == pytest.approx([score for _, score in expected], abs=1e-4)


def test_one_group_is_plain_beam_search() -> None:
    model = by_last_two(6, seed=3)
    plain = search(Recount(model), [[2], [4]], [6, 5], beam.BeamSettings(4))
    grouped = search(Recount(model), [[2], [4]], [6, 5], beam.BeamSettings(4, groups=1, diversity_penalty=9.0))
    assert grouped == plain


def test_diversity_penalty_makes_groups_differ() -> None:
    first = {
        penalty: {text.ids[0] for text in search(
            Recount(by_last_two(6, 1)), [[2]], [4], beam.BeamSettings(4, groups=4, diversity_penalty=penalty)
        )[0]}
        for penalty in (0.0, 100.0)
    }  # fmt: skip
    assert len(first[0.0]) == 1
    assert len(first[100.0]) == 4


# --- streaming, and searches that are stopped -------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("groups", [1, 2])
def test_agreed_prefix_of_beams_is_never_taken_back(seed: int, groups: int) -> None:
    settings = beam.BeamSettings(4, groups=groups, diversity_penalty=0.3)
    agreed: list[tuple[int, ...]] = []
    last = None
    for _, last in beam.beam_search(
        Recount(by_last_two(5, seed)),
        [[2]],
        [8],
        [],
        settings,
        [beam.best],
        lambda _, ids: "eos" if not ids[-1] else None,
    ):
        agreed.append(last.agreed)
        texts = [text.ids for text in (*last.live, *last.finished)]
        longest = max(n for n in range(len(texts[0]) + 1) if len({ids[:n] for ids in texts}) == 1)
        assert last.agreed == texts[0][:longest]  # all of it, at once
    assert last is not None
    for text in last.finished:
        assert all(text.ids[: len(prefix)] == prefix for prefix in agreed)


def test_each_prompt_has_its_own_finish() -> None:
    def finish(index: int, ids: Sequence[int]) -> str | None:
        return "stop" if len(ids) == [3, 1][index] else None

    proposers = [beam.best] * 2
    searches = beam.beam_search(
        Recount(by_last_two(5, 0)), [[2], [1]], [9, 9], [], beam.BeamSettings(2), proposers, finish
    )
    lengths = {index: [len(text.ids) for text in one.finished] for index, one in searches if one.is_over}
    assert lengths == {0: [3, 3], 1: [1, 1]}


def test_search_stopped_by_time_returns_what_it_has() -> None:
    def finish(_: int, ids: Sequence[int]) -> str | None:
        return "time" if len(ids) == 2 else None

    searches = beam.beam_search(Recount(by_last_two(5, 0)), [[2]], [50], [], beam.BeamSettings(3), [beam.best], finish)
    *_, (_, last) = searches
    assert last.is_over
    assert [len(text.ids) for text in last.finished] == [2, 2, 2]
    assert {text.finish_reason for text in last.finished} == {"time"}
