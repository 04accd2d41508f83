"""The shipped order of the filters, against transformers' own logits processors in their own order."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.decoding import filters
from gpt2tg.decoding.interface import Text, apply_filters
from gpt2tg.generation.filter_chain import distribution_filters, filter_chain, forms, token_biases
from gpt2tg.options import DecodingOptions
from gpt2tg.selftest import random_model

DOCS = Path(__file__).parents[2] / "docs" / "decoding.md"

VOCABULARY = 40
END = 0
PROMPT = 6

# The functions behind the filters, in the order in which they must act.
ORDER = [
    "without",
    "sequence_bias",
    "repetition_penalty",
    "presence_and_frequency",
    "no_repeat_ngram",
    "sequence_bias",
    "ban",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
]

# Every filter at once; strong enough that each changes the result.
EVERYTHING = DecodingOptions(
    decoding="sample",
    bias=("1=4", "2 3=3", "5=-2"),
    repetition_penalty=1.8,
    presence_penalty=0.7,
    frequency_penalty=0.4,
    no_repeat_ngram=2,
    ban_words=("7", "3 4"),
    min_new_tokens=30,
    temperature=0.6,
)
WARPERS = dict(top_k=12, top_p=0.8, min_p=0.15, typical_p=0.7)


@pytest.fixture(scope="module")
def numbers() -> TextTokenizer:
    """A tokenizer whose word "7" is the token 7."""
    raw = Tokenizer(WordLevel({str(token): token for token in range(VOCABULARY)}, unk_token="0"))
    raw.pre_tokenizer = WhitespaceSplit()
    return TextTokenizer(raw, END)


def everything(**settings: float) -> DecodingOptions:
    """All history filters and temperature, and these other filters."""
    return DecodingOptions(**{**vars(EVERYTHING), "decoding": "top_p", **settings})


class PresenceAndFrequency(LogitsProcessor):
    """The penalties of OpenAI's API, which transformers lacks, as their documentation has them."""

    def __init__(self, presence: float, frequency: float) -> None:
        self.presence, self.frequency = presence, frequency

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        counts = torch.zeros_like(scores).scatter_add(1, input_ids, torch.ones(input_ids.shape))
        return scores - self.presence * (counts > 0) - self.frequency * counts


def processors_of_transformers(options: DecodingOptions) -> LogitsProcessorList:
    """The processors that transformers' `generate` makes of the same settings, in its order."""
    config = GenerationConfig(
        do_sample=True,
        sequence_bias=[[[1], 4.0], [[2, 3], 3.0], [[5], -2.0]],
        repetition_penalty=options.repetition_penalty,
        no_repeat_ngram_size=options.no_repeat_ngram,
        bad_words_ids=[[7], [3, 4]],
        min_new_tokens=options.min_new_tokens,
        eos_token_id=END,
        pad_token_id=END,
        temperature=options.temperature,
        top_k=options.top_k or 0,
        top_p=options.top_p if options.top_p is not None else 1.0,
        min_p=options.min_p,
        typical_p=options.typical_p if options.typical_p is not None else 1.0,
    )
    model = random_model(0, layers=1, width=16)
    model._prepare_special_tokens(config, kwargs_has_attention_mask=True)
    found = model._get_logits_processor(config, input_ids_seq_length=PROMPT)
    place = next(n for n, step in enumerate(found) if isinstance(step, RepetitionPenaltyLogitsProcessor))
    found.insert(place + 1, PresenceAndFrequency(options.presence_penalty, options.frequency_penalty))
    return found


CHOICES = [
    {"top_k": 12, "top_p": 0.8, "min_p": 0.15, "typical_p": 0.7},
    {"top_k": VOCABULARY, "top_p": 0.6, "min_p": 0.05, "typical_p": 1.0},
    {"top_k": 9, "top_p": 1.0, "min_p": 0.0, "typical_p": 0.4},
    {"top_k": 20, "top_p": 0.5, "min_p": 0.0, "typical_p": 1.0},
    {"top_k": 3, "top_p": 0.8, "min_p": 0.0, "typical_p": 1.0},
    {"top_k": VOCABULARY, "top_p": 1.0, "min_p": 0.3, "typical_p": 0.6},
]


@pytest.mark.parametrize("chosen", CHOICES, ids=str)
def test_all_filters_together_equal_transformers(numbers: TextTokenizer, chosen: dict[str, float]) -> None:
    options = everything(**chosen)
    chain, theirs = filter_chain(options, numbers, [END]).filters, processors_of_transformers(options)
    generator = torch.Generator().manual_seed(5)
    for _ in range(20):
        ids = torch.randint(0, 9, (30, 14), generator=generator)  # few different tokens, so that every filter acts
        logits = torch.randn(30, VOCABULARY, generator=generator) * 2
        texts = [Text.after(row[:PROMPT]) for row in ids.tolist()]
        for text, row in zip(texts, ids.tolist(), strict=True):
            for token in row[PROMPT:]:
                text.append(token)
        torch.testing.assert_close(apply_filters(chain, logits, texts), theirs(ids, logits.clone()))


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the filters in the order in which they are called."""
    names: list[str] = []
    for name in set(ORDER):
        genuine: Callable[..., Tensor] = getattr(filters, name)

        def noted(*given: object, name: str = name, genuine: Callable[..., Tensor] = genuine, **more: object) -> Tensor:
            names.append(name)
            return genuine(*given, **more)

        monkeypatch.setattr(filters, name, noted)
    return names


def test_filters_act_in_the_documented_order(numbers: TextTokenizer, applied: list[str]) -> None:
    """Also those whose order cannot be seen in the result, such as two bans."""
    unused = torch.zeros(VOCABULARY, dtype=torch.bool)
    chain = filter_chain(everything(**WARPERS), numbers, [END], unused).filters
    logits = apply_filters(chain, torch.zeros(1, VOCABULARY), [Text.after([7])])
    assert applied == ORDER
    assert logits[0, 7] == -torch.inf, "the second sequence_bias is the ban"


def test_biases_come_before_bans(numbers: TextTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[int, float]] = []
    genuine = filters.sequence_bias

    def noted(logits: Tensor, histories: object, biases: filters.Biases) -> Tensor:
        last, bias = biases.by_stem[()]
        given.append(dict(zip(last.tolist(), bias.tolist(), strict=True)))
        return genuine(logits, histories, biases)  # type: ignore[arg-type]

    monkeypatch.setattr(filters, "sequence_bias", noted)
    apply_filters(filter_chain(EVERYTHING, numbers, [END]).filters, torch.zeros(1, VOCABULARY), [Text.after([9])])
    assert given == [{1: 4.0, 5: -2.0}, {7: -torch.inf}]


def test_docs_list_the_filters_in_their_order() -> None:
    rows = re.findall(r"^\| \d+ \| (.*?) \|", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    flags = [re.findall(r"--(\w+)", row)[0] for row in rows]
    names = {"bias": "sequence_bias", "ban_words": "sequence_bias", "min_new_tokens": "ban"}
    names["presence_penalty"] = "presence_and_frequency"
    assert [names.get(flag, flag) for flag in flags] == ORDER[1:]


def test_chain_without_options_is_empty(numbers: TextTokenizer) -> None:
    chain = filter_chain(DecodingOptions(decoding="greedy"), numbers, [END])
    assert (chain.unused, chain.history, chain.distribution, chain.filters) == ([], [], [], [])


@pytest.mark.parametrize(("decoding", "keep"), [("top_p", 1), ("beam_sample", 3)])
def test_distribution_filters_have_the_settings_of_the_options(decoding: str, keep: int) -> None:
    """With beams each leaves one token more than can end a text; here two can."""
    options = DecodingOptions(decoding=decoding, temperature=0.6, **WARPERS)
    assert [(step.func.__name__, step.keywords) for step in distribution_filters(options, 2)] == [
        ("temperature", {"value": 0.6}),
        ("top_k", {"k": 12, "keep": keep}),
        ("top_p", {"p": 0.8, "keep": keep}),
        ("min_p", {"p": 0.15, "keep": keep}),
        ("typical_p", {"p": 0.7, "keep": keep}),
    ]


def test_beams_keep_one_token_more_than_the_end_tokens(numbers: TextTokenizer) -> None:
    chain = filter_chain(DecodingOptions(decoding="beam_sample", top_k=1, temperature=1.0), numbers, [END, 4])
    assert [step.keywords for step in chain.distribution] == [{"k": 1, "keep": 3}]


def test_settings_that_are_off_add_no_filter(numbers: TextTokenizer) -> None:
    options = DecodingOptions(decoding="top_p", temperature=1.0, top_p=1.0, min_p=0.0, typical_p=1.0)
    assert filter_chain(options, numbers, [END]).filters == []


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"presence_penalty": 1.0}, "presence_and_frequency"), ({"frequency_penalty": 1.0}, "presence_and_frequency"),
     ({"repetition_penalty": 0.9}, "repetition_penalty"), ({"no_repeat_ngram": 1}, "no_repeat_ngram"),
     ({"min_new_tokens": 1}, "ban"), ({"suppress_eos": True}, "ban"), ({"bias": ("1=2",)}, "sequence_bias"),
     ({"ban_words": ("1",)}, "sequence_bias")],
)  # fmt: skip
def test_each_setting_alone_adds_its_filter(
    numbers: TextTokenizer, applied: list[str], settings: dict[str, object], name: str
) -> None:
    chain = filter_chain(DecodingOptions(decoding="greedy", **settings), numbers, [END]).filters  # type: ignore[arg-type]
    apply_filters(chain, torch.zeros(1, VOCABULARY), [Text.after([9])])
    assert applied == [name]


def test_end_is_banned_until_the_minimum_length(numbers: TextTokenizer) -> None:
    text, banned = Text.after([9, 9]), []
    chain = filter_chain(DecodingOptions(decoding="greedy", min_new_tokens=2), numbers, [END, 4]).filters
    for _ in range(4):
        logits = apply_filters(chain, torch.zeros(1, VOCABULARY), [text])
        banned.append((logits[0] == -torch.inf).nonzero()[:, 0].tolist())
        text.append(7)
    assert banned == [[END, 4], [END, 4], [], []]


def test_penalties_look_at_the_window_only(numbers: TextTokenizer) -> None:
    settings = dict(repetition_penalty=2.0, presence_penalty=1.0, frequency_penalty=0.5, penalty_window=2)
    chain = filter_chain(DecodingOptions(decoding="greedy", **settings), numbers, [END]).filters
    logits = apply_filters(chain, torch.full((1, VOCABULARY), 8.0), [Text.after([5, 6, 6])])
    assert logits[0, [5, 6]].tolist() == [8.0, 8.0 / 2 - 1.0 - 2 * 0.5]


def test_forms_of_a_word() -> None:
    assert forms(" owl ") == ["owl", " owl", "Owl", " Owl", "OWL", " OWL"]
    assert forms("\nXI")[:2] == ["\nXI", " \nXI"]
    assert forms("XI")[0] == "XI"
    assert forms("oWL") == ["oWL", " oWL", "owl", " owl", "OWL", " OWL"]


def test_white_space_stands_for_all_tokens_that_contain_it() -> None:
    """Two line breaks may be one token, or the end and the beginning of two neighbouring tokens."""
    words = ["a", "\n", "\n\n", "b\n", "\nc", "x\n\ny"]
    raw = Tokenizer(WordLevel({word: token for token, word in enumerate(words)}, unk_token="a"))
    tokenizer = TextTokenizer(raw, END)
    assert set(token_biases({"\n": 1.0}, tokenizer)) == {(token,) for token in range(1, 6)}
    assert set(token_biases({"\n\n": 2.0}, tokenizer)) == {(2,), (5,), (1, 1), (1, 4), (3, 1), (3, 4)}
    assert set(token_biases({"\n\n": 2.0}, tokenizer).values()) == {2.0}
