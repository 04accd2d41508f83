"""Speculative decoding: whatever is guessed, each text is the one of the plain loop."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from gpt2tg.decoding import sampling
from gpt2tg.decoding.drafting import Drafter, decode_with_drafts
from gpt2tg.decoding.interface import Text, Token
from gpt2tg.decoding.live_texts import LiveTexts
from gpt2tg.decoding.lookup import PromptLookup
from gpt2tg.decoding.model_drafter import LookupOrModel, ModelDrafter
from gpt2tg.decoding.pace import Costs, Pace

VOCABULARY = 12
END = 0


class TableRows:
    """A model whose logits depend on the last two tokens. Counts its forward passes."""

    def __init__(self, table: Tensor, capacity: int = 99) -> None:
        self.table = table  # (V, V, V)
        self.capacity = capacity
        self.held: list[list[int]] = []
        self.passes = self.read = 0

    def _logits(self, ids: Sequence[int]) -> Tensor:
        assert len(ids) <= self.capacity
        return self.table[ids[-2] if len(ids) > 1 else END, ids[-1]]

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        self.held = [list(prompt) for prompt in prompts]
        return torch.stack([self._logits(ids) for ids in self.held])

    def step(self, tokens: Tensor) -> Tensor:
        return self.extend({row: [token] for row, token in enumerate(tokens.tolist())})

    def extend(self, tokens: Mapping[int, Sequence[int]], every: bool = True) -> Tensor:
        self.passes += 1
        found = []
        for row, ids in tokens.items():
            assert ids
            for n, token in enumerate(ids, start=1):
                self.held[row].append(token)
                self.read += 1
                if every or n == len(ids):
                    found.append(self._logits(self.held[row]))
        return torch.stack(found)

    def take_back(self, counts: Sequence[int]) -> None:
        for ids, count in zip(self.held, counts, strict=True):
            assert 0 <= count < len(ids)
            del ids[len(ids) - count :]

    def select(self, rows: Sequence[int]) -> None:
        self.held = [list(self.held[row]) for row in rows]


def table(seed: int, noise: float = 0.0) -> Tensor:
    """Return a model, or a similar one that agrees with it the less often the more noise there is."""
    of_model = torch.randn(VOCABULARY, VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2
    return of_model + noise * torch.randn(of_model.shape, generator=torch.Generator().manual_seed(seed + 1000))


class AnyLength(Pace):
    """Guesses as many tokens as chance says."""

    def __init__(self, seed: int) -> None:
        super().__init__(Costs(is_measured=False))
        self._chance = random.Random(seed)

    def next_length(self, rows: int) -> int:
        return self._chance.choice([0, 1, 2, 3, 7])


class AnyGuess:
    """A drafter that guesses random tokens, of which some are right by chance, and some end the text."""

    def __init__(self, seed: int) -> None:
        self.costs = Costs(is_measured=False)
        self._chance = random.Random(seed)

    def guess(self, live: LiveTexts, limits: Sequence[int]) -> list[list[int]]:
        return [
            [self._chance.randrange(4) for _ in range(self._chance.randint(0, max(0, min(limit, 5))))]
            for limit in limits
        ]

    def select(self, rows: Sequence[int]) -> None:
        pass


PROMPTS, OWNERS = [[3, 4, 5, 3, 4], [7], [5, 5, 2]], [0, 0, 1, 2, 2, 2]
LIMITS = [9, 9, 30, 17, 17, 17]


def finish(sample: int, ids: Sequence[int]) -> str | None:
    if ids[-1] == END:
        return "eos"
    if list(ids[-2:]) == [2, 3]:
        return "stop"
    return "length" if len(ids) == LIMITS[sample] else None


def no_repeat(logits: Tensor, texts: Sequence[Text]) -> Tensor:
    """Penalise each token once for each time that the text holds it; ban the end in the first four tokens."""
    counts = torch.stack([text.ids.counts(VOCABULARY, logits.device) for text in texts])
    early = torch.tensor([text.new_count < 4 for text in texts])
    return (logits - 0.3 * counts).masked_fill(early[:, None] & (torch.arange(VOCABULARY) == END), -torch.inf)


def draw() -> sampling.Draw:
    return sampling.Draw([sampling.stream(5, 0, sample) for sample in range(len(OWNERS))])


def by_sample(tokens: Sequence[Token]) -> dict[int, list[Token]]:
    found: dict[int, list[Token]] = {sample: [] for sample in range(len(OWNERS))}
    for token in tokens:
        found[token.sample].append(token)
    return found


def plain(seed: int, filters: Sequence, samples: bool) -> dict[int, list[Token]]:
    choose = draw() if samples else sampling.most_probable
    return by_sample(list(sampling.decode(TableRows(table(seed)), PROMPTS, OWNERS, filters, choose, finish)))


@pytest.mark.parametrize("kind", ["draft", "other", "lookup", "both", "any"])
@pytest.mark.parametrize("samples", [False, True], ids=["greedy", "drawn"])
@pytest.mark.parametrize("filters", [[], [no_repeat]], ids=["plain", "filtered"])
def test_every_drafter_gives_the_texts_of_the_plain_loop(filters: list, samples: bool, kind: str) -> None:
    """Several texts of several prompts, each with a limit of its own; a draft that agrees often, and one that does not,
    whose cache is shorter than the texts."""
    for seed in range(4):
        choose = drawing = draw()
        ahead = drawing.ahead
        if not samples:
            choose, ahead = sampling.most_probable, sampling.most_probable_ahead
        noise, capacity = (3.0, 12) if kind == "other" else (0.5, 99)
        of_draft = TableRows(table(seed, noise), capacity)
        model = ModelDrafter(of_draft, capacity, PROMPTS, OWNERS, filters, ahead, AnyLength(seed))
        lookup = PromptLookup([PROMPTS[owner] for owner in OWNERS], 4, Costs(is_measured=False))
        drafters: dict[str, Drafter] = {
            **dict.fromkeys(("draft", "other"), model),
            "lookup": lookup,
            "both": LookupOrModel(lookup, model),
            "any": AnyGuess(seed),
        }
        rows = TableRows(table(seed))
        tokens = decode_with_drafts(rows, PROMPTS, OWNERS, filters, choose, finish, LIMITS, drafters[kind])
        assert by_sample(list(tokens)) == plain(seed, filters, samples)
        assert all(len(held) < 5 + 30 for held in rows.held)


@pytest.mark.parametrize("samples", [False, True], ids=["greedy", "drawn"])
def test_draft_equal_to_the_model_is_always_right(samples: bool) -> None:
    """Drawn tokens too: the draft uses the uniform numbers that the model will use."""
    drawing = draw()
    choose = drawing if samples else sampling.most_probable
    ahead = drawing.ahead if samples else sampling.most_probable_ahead
    pace, filters = AnyLength(1), [no_repeat, lambda x, texts: x.index_fill(1, torch.tensor([END]), -torch.inf)]
    drafter = ModelDrafter(TableRows(table(3)), 99, PROMPTS, OWNERS, filters, ahead, pace)
    rows = TableRows(table(3))

    def at_length(sample: int, ids: Sequence[int]) -> str | None:
        return "length" if len(ids) == 30 else None

    list(decode_with_drafts(rows, PROMPTS, OWNERS, filters, choose, at_length, [30] * len(OWNERS), drafter))
    assert pace.right == pace.guessed > 100
    assert rows.passes < 15


def test_paused_draft_reads_nothing() -> None:
    class Never(AnyLength):
        def next_length(self, rows: int) -> int:
            return 0

    rows = TableRows(table(3))
    drafter = ModelDrafter(rows, 99, PROMPTS, OWNERS, [], sampling.most_probable_ahead, Never(1))
    list(decode_with_drafts(TableRows(table(3)), PROMPTS, OWNERS, [], sampling.most_probable, finish, LIMITS, drafter))
    assert (rows.held, rows.passes) == ([], 0)


def test_looking_ahead_uses_up_no_random_number() -> None:
    logits = torch.zeros(2, 1000)
    drawing = draw()
    ahead = [drawing.ahead(logits, [0, 1], places).tolist() for places in (2, 0, 1)]
    expected = [drawing(logits, [0, 1]).tolist() for _ in range(3)]
    assert [ahead[1], ahead[2], ahead[0]] == expected
    fresh = draw()
    assert [fresh(logits, [0, 1]).tolist() for _ in range(3)] == expected


# The pace


def passes(pace: Pace, agreement: float, count: int, seed: int = 1) -> tuple[int, float, list[int]]:
    """Simulate forward passes for one row. Returns the tokens generated, their cost, and the lengths of the guesses."""
    chance, tokens, cost, lengths = random.Random(seed), 0, 0.0, []
    for _ in range(count):
        length = pace.next_length(1)
        right = next((n for n in range(length) if chance.random() >= agreement), length)
        pace.note(right, length)
        tokens += 1 + right
        cost += pace.costs.of_pass(1 + length) + length * pace.costs.of_draft(1)
        lengths.append(length)
    return tokens, cost, lengths


def test_cheap_draft_that_agrees_guesses_far() -> None:
    tokens, cost, lengths = passes(Pace(Costs(0.05, is_measured=False)), 0.9, 200)
    assert lengths[0] >= 1
    assert sorted(lengths[50:])[75] >= 4
    assert tokens / cost > 1.8


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 1.0])
def test_draft_that_never_agrees_costs_less_than_a_tenth(share: float) -> None:
    tokens, cost, lengths = passes(Pace(Costs(share, is_measured=False)), 0.0, 150)
    assert tokens / cost > 0.9
    assert lengths[-60:].count(0) >= 58


def test_draft_that_agrees_again_is_noticed() -> None:
    pace = Pace(Costs(0.05, is_measured=False))
    passes(pace, 0.0, 300)
    assert pace.is_paused
    passes(pace, 0.95, 400)
    assert not pace.is_paused
    assert pace.next_length(1) > 3


def test_draft_as_slow_as_the_model_does_not_guess() -> None:
    _, _, lengths = passes(Pace(Costs(1.0, is_measured=False)), 0.9, 100)
    assert lengths.count(0) > 90


def test_costs_follow_the_passes_that_were_measured() -> None:
    costs = Costs(0.1)
    assert costs.of_pass(3) > costs.of_pass(1) > 0
    for n in range(60):
        tokens = 1 + n % 6
        costs.note_pass(tokens, 0.02 + 0.005 * tokens if n != 30 else 9.0)
    assert costs.of_pass(1) == pytest.approx(0.025, rel=0.15)
    assert costs.of_pass(6) == pytest.approx(0.05, rel=0.15)
    assert costs.price(1) == pytest.approx(0.2, rel=0.25)
    assert costs.of_draft(1) == pytest.approx(0.1 * costs.of_pass(1))
    costs.note_draft(0.003)
    assert costs.of_draft(1) == 0.003


def test_costs_that_are_not_measured_stay() -> None:
    """Then guesses are the same in every run."""
    costs = Costs(0.1, is_measured=False)
    before = costs.of_pass(4), costs.of_draft(1), costs.price(2)
    for tokens in range(1, 9):
        with costs.measured_pass(tokens), costs.measured_draft():
            pass
    assert (costs.of_pass(4), costs.of_draft(1), costs.price(2)) == before
