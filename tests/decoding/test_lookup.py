"""Prompt lookup: several tokens per forward pass, and the same text as without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gpt2tg.decoding import sampling
from gpt2tg.decoding.drafting import decode_with_drafts
from gpt2tg.decoding.interface import NotFiniteError, Text, Token
from gpt2tg.decoding.lookup import Guesser, PromptLookup
from gpt2tg.decoding.pace import Costs
from gpt2tg.decoding.sampling import most_probable
from gpt2tg.engine.context import Context
from gpt2tg.engine.contexts import new_context
from gpt2tg.engine.torch_context import TorchContext
from gpt2tg.generation.generator import Generator, load
from gpt2tg.options import DecodingOptions, decoding_options

VOCABULARY = 40
END = 0


class Script:
    """A model that has memorised a text: after each prefix the next token is probable. Records its forward passes."""

    def __init__(self, text: Sequence[int]) -> None:
        self.text = list(text)
        self.held: list[int] = []
        self.readings: list[int] = []

    def _logits(self, length: int) -> Tensor:
        """Return the logits after so many tokens; after a wrong prefix, a token that is not in the text is probable."""
        logits = torch.linspace(0, 1, VOCABULARY)
        right = self.held[:length] == self.text[:length]
        logits[self.text[length] if right and length < len(self.text) else VOCABULARY - 1] = 9.0
        return logits

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        (prompt,) = prompts
        self.held = list(prompt)
        return self._logits(len(prompt))[None]

    def step(self, tokens: Tensor) -> Tensor:
        return self._read(tokens.tolist())

    def extend(self, tokens: Mapping[int, Sequence[int]], every: bool = True) -> Tensor:
        assert every
        return self._read(tokens[0])

    def _read(self, tokens: Sequence[int]) -> Tensor:
        before = len(self.held)
        self.held += tokens
        self.readings.append(len(tokens))
        assert len(self.readings) < 300, "the text does not end"
        return torch.stack([self._logits(before + n + 1) for n in range(len(tokens))])

    def take_back(self, counts: Sequence[int]) -> None:
        (count,) = counts
        assert 0 <= count < len(self.held)
        del self.held[len(self.held) - count :]

    def select(self, rows: Sequence[int]) -> None:
        assert list(rows) == [0]


def written(script: Script, prompt: int, room: int, longest: int = 10, filters: Sequence = ()) -> list[Token]:
    """Return the tokens that are generated after the first `prompt` tokens of a script."""

    def finish(sample: int, ids: Sequence[int]) -> str | None:
        return "eos" if ids[-1] == END else "length" if len(ids) == room else None

    ids = script.text[:prompt]
    drafter = PromptLookup([ids], longest, Costs(is_measured=False))
    return list(decode_with_drafts(script, [ids], [0], filters, most_probable, finish, [room], drafter))


REFRAIN = [*range(1, 9)]
SONG = [*REFRAIN, 20, *REFRAIN, 21, *REFRAIN, 22, *REFRAIN, END]
PROSE = [*range(1, 38), END]


def test_lookup_generates_the_whole_script() -> None:
    for text in (SONG, PROSE):
        tokens = written(Script(text), 1, room=100)
        assert [token.id for token in tokens] == text[1:]
        assert [token.finish_reason for token in tokens] == [None] * (len(text) - 2) + ["eos"]


def test_repeated_refrain_is_read_in_fewer_passes() -> None:
    song = Script(SONG)
    written(song, 9, room=100)
    assert len(song.readings) < (len(SONG) - 9) / 2
    assert max(song.readings) > 5


def test_text_without_repetition_is_read_token_by_token() -> None:
    prose = Script(PROSE)
    written(prose, 1, room=100)
    assert set(prose.readings) == {1}
    assert len(prose.readings) == len(PROSE) - 2


def test_guess_length_zero_reads_token_by_token() -> None:
    song = Script(SONG)
    assert [token.id for token in written(song, 9, room=100, longest=0)] == SONG[9:]
    assert set(song.readings) == {1}


@pytest.mark.parametrize("longest", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("room", range(1, 28))
def test_guesses_stay_within_both_limits(room: int, longest: int) -> None:
    """The cache never holds more than the prompt and all new tokens but the last."""
    song = Script(SONG)
    longest_held = 0
    original = song._read

    def watched(tokens: Sequence[int]) -> Tensor:
        nonlocal longest_held
        logits = original(tokens)
        longest_held = max(longest_held, len(song.held))
        return logits

    song._read = watched
    tokens = written(song, 9, room=room, longest=longest)
    assert [token.id for token in tokens] == SONG[9 : 9 + room]
    assert tokens[-1].finish_reason == ("eos" if room == 27 else "length")
    assert longest_held <= 9 + room - 1
    assert max(song.readings, default=0) <= 1 + longest


def test_guess_is_taken_back_from_its_first_wrong_token() -> None:
    text = [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 30, 31, 32, END]
    script = Script(text)
    assert [token.id for token in written(script, 9, room=20)] == text[9:]
    assert script.readings[0] > 1, "1 2 3 has stood there before: something was guessed"


def test_guess_is_dropped_after_a_step_with_all_tokens_banned() -> None:
    """The whole refrain is guessed, but after its fourth token everything is banned."""
    script = Script(SONG)
    dead_end = [lambda x, texts: x.masked_fill(torch.tensor(texts[0].new_count == 4), -torch.inf)]
    tokens = written(script, 9, room=50, filters=dead_end)
    assert [token.id for token in tokens] == [*SONG[9:13], None]
    assert tokens[-1].finish_reason == "banned"


def test_end_token_inside_a_right_guess_ends_the_text() -> None:
    """The prompt has an end token between two texts, so it is guessed together with the tokens after it."""
    text = [1, 2, 3, 4, END, 1, 2, 3, 4, END, 1, 2, 3, 4, END, 1, 2]
    script = Script(text)
    tokens = written(script, 12, room=50)
    assert [token.id for token in tokens] == [3, 4, END]
    assert [token.finish_reason for token in tokens] == [None, None, "eos"]
    assert script.readings[0] > 3, "the guess went on beyond the end"


def test_filters_see_the_text_before_each_guessed_token() -> None:
    seen: list[list[int]] = []

    def note(logits: Tensor, texts: Sequence[Text]) -> Tensor:
        (text,) = texts
        assert logits.shape == (1, VOCABULARY)
        seen.append(list(text.ids))
        return logits

    written(Script(SONG), 9, room=100, filters=[note])
    assert seen == [SONG[:length] for length in range(9, len(SONG))]


def test_nan_in_a_guess_is_reported_at_its_own_token() -> None:
    class Broken(Script):
        def _logits(self, length: int) -> Tensor:
            return torch.full((VOCABULARY,), torch.nan) if length == 13 else super()._logits(length)

    drafter = PromptLookup([SONG[:9]], 10, Costs(is_measured=False))
    tokens = decode_with_drafts(Broken(SONG), [SONG[:9]], [0], [], most_probable, lambda *_: None, [50], drafter)
    assert [next(tokens).id for _ in range(4)] == SONG[9:13]
    with pytest.raises(NotFiniteError, match="new token 5"):
        next(tokens)


# The guesser


def test_guess_follows_the_latest_match_of_the_longest_ngram() -> None:
    assert Guesser([1, 2, 3, 7, 9, 2, 3, 8, 1, 2, 3], 1).guess(9) == [7]
    assert Guesser([1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3], 1).guess(9) == [8]
    assert Guesser([5, 2, 3, 7, 6, 2, 3], 1).guess(9) == [7]
    assert Guesser([1, 2, 3, 4], 5).guess(9) == []


def test_guess_is_no_longer_than_its_limits() -> None:
    sure = [1, 2, 3, 4, 5, 6, 7, 8] * 5
    assert Guesser(sure, 9).guess(99) == [*sure, 1][:9]
    assert Guesser(sure, 9).guess(2) == [1, 2]
    assert Guesser(sure, 3).guess(99) == [1, 2, 3]
    assert Guesser(sure, 9).guess(0) == []


def test_guess_beyond_the_end_repeats_the_period() -> None:
    assert Guesser([1, 2, 3] * 10, 8).guess(99) == [1, 2, 3, 1, 2, 3, 1, 2]
    assert Guesser([5] * 10, 4).guess(99) == [5, 5, 5, 5]


def lengths(guesser: Guesser, endings: Sequence[int]) -> list[int]:
    """Return the length of the guess after each repetition of a refrain that one of these tokens follows."""
    found = []
    for token in endings:
        guesser.append([1, 2, 3])
        found.append(len(guesser.guess(99)))
        guesser.append([token])
    return found


def test_right_guesses_lengthen_later_ones() -> None:
    found = lengths(Guesser([1, 2, 3, 9], 8), [9] * 12)
    assert found == sorted(found)
    assert 0 < found[0] < found[-1] == 8


def test_wrong_guesses_shorten_later_ones_to_none() -> None:
    found = lengths(Guesser([1, 2, 3, 9], 8), range(10, 40))
    assert found == sorted(found, reverse=True)
    assert found[0] > 0 == found[-1]


def test_guessing_resumes_once_guesses_would_be_right() -> None:
    guesser = Guesser([1, 2, 3, 9], 8)
    lengths(guesser, range(10, 40))
    assert lengths(guesser, [9] * 20)[-1] == 8


def test_misleading_repeats_soon_stop_the_guessing() -> None:
    text = [token for other in range(10, 39) for token in (1, 2, other)] + [END]
    script = Script(text)
    assert [token.id for token in written(script, 1, room=100)] == text[1:]
    assert sum(script.readings) > len(text), "at first what followed 1 2 was guessed"
    assert script.readings[-20:] == [2, 1] * 10, "that 2 follows 1 still is"


# On a trained model


@pytest.fixture(scope="module")
def tiny() -> Generator:
    return load("gpt2-tiny")


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of tokens in each forward pass after the prompt."""
    from gpt2tg.engine.cpu.kernel_context import KernelContext

    noted: list[int] = []
    for kind in (TorchContext, KernelContext):
        original = kind.__dict__["extend"]

        def extend(self: Context, tokens: Mapping[int, Sequence[int]], *rest: bool, original=original) -> Tensor:
            noted.append(len(tokens[0]))
            return original(self, tokens, *rest)

        monkeypatch.setattr(kind, "extend", extend)
    return noted


PROMPTS = ["Once upon a time", "The dog said: run, run, run, and the cat said: run, run,"]

GREEDY: dict[str, dict] = {
    "plain": {},
    "repetition penalty": {"repetition_penalty": 1.2},
    "n-grams": {"no_repeat_ngram": 3},
    "bias": {"bias": ("the=-2",)},
    "minimum": {"min_new_tokens": 60},
    "stop string": {"stop": ("and",)},
    "no end": {"suppress_eos": True},
}


def both(tiny: Generator, prompt: str, wanted: DecodingOptions) -> tuple[list, list]:
    return tiny.generate(prompt, replace(wanted, prompt_lookup=0)), tiny.generate(prompt, wanted)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("settings", GREEDY.values(), ids=GREEDY)
def test_prompt_lookup_does_not_change_greedy_samples(tiny: Generator, settings: dict, prompt: str) -> None:
    wanted = decoding_options({"decoding": "greedy", "max_new_tokens": 100, "prompt_lookup": 10, **settings})
    plain, guessed = both(tiny, prompt, wanted)
    assert [sample.ids for sample in guessed] == [sample.ids for sample in plain]
    if new_context(tiny.model, 8).is_exact:
        assert guessed == plain


@pytest.mark.parametrize("decoding", ["sample", "top_p"])
def test_prompt_lookup_does_not_change_drawn_texts(tiny: Generator, decoding: str) -> None:
    settings = {"decoding": decoding, "seed": 5, "num_sequences": 1, "temperature": 0.3, "max_new_tokens": 80}
    plain, guessed = both(tiny, PROMPTS[1], decoding_options({**settings, "prompt_lookup": 6}))
    assert [sample.ids for sample in guessed] == [sample.ids for sample in plain]


def test_repetitive_text_takes_fewer_passes_than_tokens(tiny: Generator, readings: list[int]) -> None:
    wanted = decoding_options({"decoding": "greedy", "max_new_tokens": 150, "suppress_eos": True, "prompt_lookup": 10})
    (sample,) = tiny.generate(PROMPTS[1], wanted)
    assert len(sample.ids) == 150
    assert len(readings) < 100
    assert sum(readings) >= 149


def test_guessing_works_to_the_last_position(tiny: Generator, readings: list[int]) -> None:
    positions = tiny.model.shape.n_positions
    settings = {"decoding": "greedy", "max_length": positions, "suppress_eos": True}
    prompt = " ".join(["run, run, and"] * (positions // 6))
    plain, guessed = both(tiny, prompt, decoding_options({**settings, "prompt_lookup": 16}))
    assert guessed[0].ids == plain[0].ids
    assert guessed[0].prompt_tokens + len(guessed[0].ids) == positions
    assert max(readings) > 4


def test_prompt_lookup_equals_the_plain_loop(tiny: Generator) -> None:
    """Against `sampling.decode`, which makes no guesses."""
    ids = tiny.encode(PROMPTS[0])

    def finish(sample: int, new: Sequence[int]) -> str | None:
        return "length" if len(new) == 60 else None

    plain = sampling.decode(new_context(tiny.model, len(ids) + 60), [ids], [0], [], most_probable, finish)
    drafter = PromptLookup([ids], 10, Costs())
    context = new_context(tiny.model, len(ids) + 60)
    guessed = decode_with_drafts(context, [ids], [0], [], most_probable, finish, [60], drafter)
    for one, other in zip(plain, guessed, strict=True):
        assert one.id == other.id
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
