"""Decoding options: ranges, contradictions, and what is in effect with each strategy."""

from __future__ import annotations

import typing

import pytest

from gpt2tg.errors import UserError
from gpt2tg.options import STRATEGIES, DecodingOptions, StrategyName, decoding_options, unused_options


@pytest.mark.parametrize(
    ("name", "value", "range_in_words"),
    [
        ("temperature", -0.1, "at least 0"),
        ("temperature", float("inf"), "finite"),
        ("temperature", float("nan"), "finite"),
        ("top_k", 0, "at least 1"),
        ("top_p", 1.0001, "at most 1"),
        ("top_p", -0.5, "at least 0"),
        ("num_beams", 0, "at least 1"),
        ("num_sequences", 0, "at least 1"),
        ("max_length", 0, "at least 1"),
        ("max_new_tokens", -3, "at least 1"),
        ("no_repeat_ngram", -1, "at least 0"),
        ("seed", -1, "at least 0"),
        ("seed", 2**32, "at most 4294967295"),
        ("min_p", 1.5, "at most 1"),
        ("typical_p", 0.0, "more than 0"),
        ("penalty_alpha", 2.0, "at most 1"),
        ("repetition_penalty", 0.0, "at least 0.001"),
        ("repetition_penalty", 1e39, "at most"),
        ("presence_penalty", 1e39, "at most"),
        ("frequency_penalty", -1e39, "at least"),
        ("length_penalty", 1000.0, "at most 20"),
        ("length_penalty", -1000.0, "at least -20"),
        ("temperature", 1e-38, "use 0 for greedy"),
        ("presence_penalty", float("nan"), "finite"),
        ("length_penalty", float("inf"), "finite"),
        ("penalty_window", 0, "at least 1"),
        ("num_beam_groups", 0, "at least 1"),
        ("min_new_tokens", -1, "at least 0"),
        ("max_time", 0.0, "more than 0"),
        ("best_of", 0, "at least 1"),
    ],
)
def test_value_out_of_range_is_refused_by_name(name: str, value: float, range_in_words: str) -> None:
    with pytest.raises(UserError, match=range_in_words) as caught:
        DecodingOptions(**{name: value})
    assert caught.value.option == name
    assert str(value) in str(caught.value)


def test_every_strategy_name_has_a_strategy() -> None:
    assert typing.get_args(StrategyName) == tuple(STRATEGIES)


def test_zero_is_a_seed() -> None:
    assert DecodingOptions(seed=0).seed == 0


@pytest.mark.parametrize(
    ("given", "sequences"),
    [
        ({"decoding": "greedy"}, 1),
        ({"decoding": "top_p"}, 3),
        ({"decoding": "beam"}, 3),
        ({"decoding": "beam", "num_beams": 2}, 2),
        ({"decoding": "top_p", "temperature": 0}, 1),
        ({"decoding": "beam_sample", "temperature": 0}, 3),
        ({"decoding": "sample", "num_sequences": 7}, 7),
    ],
)
def test_default_number_of_sequences_depends_on_the_strategy(given: dict, sequences: int) -> None:
    assert decoding_options(given).sequences == sequences


@pytest.mark.parametrize(
    ("given", "numbers"),
    [
        ({"decoding": "greedy", "num_sequences": 2}, ("2", "1")),
        ({"decoding": "beam", "num_sequences": 6}, ("6", "5")),
        ({"decoding": "beam", "num_sequences": 3, "num_beams": 2}, ("3", "2")),
        ({"decoding": "beam_sample", "num_sequences": 4, "num_beams": 3}, ("4", "3")),
        ({"decoding": "top_k", "temperature": 0, "num_sequences": 2}, ("2", "1")),
    ],
)
def test_too_many_sequences_are_refused_with_both_numbers(given: dict, numbers: tuple) -> None:
    with pytest.raises(UserError) as caught:
        decoding_options(given)
    assert caught.value.option == "num_sequences"
    assert all(number in str(caught.value) for number in numbers)


def test_max_length_contradicts_max_new_tokens() -> None:
    with pytest.raises(UserError, match="30 and --max_length 50 contradict"):
        decoding_options({"max_length": 50, "max_new_tokens": 30})


def test_max_new_tokens_replaces_the_default_max_length() -> None:
    options = decoding_options({"max_new_tokens": 30}, max_length=100)
    assert (options.max_length, options.max_new_tokens) == (None, 30)


@pytest.mark.parametrize(
    ("given", "top_k", "top_p"),
    [
        ({"decoding": "top_k"}, 50, None),
        ({"decoding": "top_k", "top_k": 5}, 5, None),
        ({"decoding": "top_k", "top_p": 0.8}, 50, 0.8),
        ({"decoding": "top_p"}, None, 0.9),
        ({"decoding": "top_p", "top_k": 20}, 20, 0.9),
        ({"decoding": "sample", "top_k": 20, "top_p": 0.8}, None, None),
        ({"decoding": "beam_sample"}, None, None),
        ({"decoding": "beam_sample", "top_k": 20}, 20, None),
        ({"decoding": "top_k", "temperature": 0, "top_k": 5, "top_p": 0.8}, None, None),
    ],
)
def test_filters_in_effect(given: dict, top_k: int | None, top_p: float | None) -> None:
    options = decoding_options(given)
    assert (options.effective_top_k, options.effective_top_p) == (top_k, top_p)


@pytest.mark.parametrize(
    ("given", "unused"),
    [
        ({"decoding": "greedy", "top_p": 0.8, "num_beams": 3}, ["top_p", "num_beams"]),
        ({"decoding": "greedy", "no_repeat_ngram": 2, "max_length": 9}, []),
        ({"decoding": "beam", "temperature": 0.9}, ["temperature"]),
        ({"decoding": "sample", "top_k": 4}, ["top_k"]),
        ({"decoding": "top_p", "top_k": 4, "seed": 1}, []),
        ({"decoding": "top_p", "early_stopping": "true"}, ["early_stopping"]),
        ({"decoding": "top_p", "temperature": 0}, []),
        ({"decoding": "top_p", "temperature": 0, "top_p": 0.5}, ["top_p"]),
        ({"decoding": "beam_sample", "num_beams": 4, "top_k": 3}, []),
        ({"decoding": "beam_sample", "best_of": 4}, ["best_of"]),
        ({"decoding": "contrastive", "top_k": 3, "penalty_alpha": 0.2, "temperature": 0.5}, ["temperature"]),
        ({"decoding": "beam", "length_penalty": 2.0, "diversity_penalty": 1.0}, ["diversity_penalty"]),
        ({"decoding": "diverse_beam", "diversity_penalty": 1.0}, []),
        ({"decoding": "top_p", "penalty_window": 9}, ["penalty_window"]),
        ({"decoding": "top_p", "penalty_window": 9, "presence_penalty": 0.5}, []),
        ({"decoding": "top_p", "keep_stop": True}, ["keep_stop"]),
        ({"decoding": "top_p", "keep_stop": True, "stop": ("x",)}, []),
    ],
)
def test_options_that_the_strategy_does_not_use(given: dict, unused: list[str]) -> None:
    assert unused_options(given, decoding_options(given)) == unused


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ({"bias": ("dragon",)}, "bias"),
        ({"bias": ("dragon=big",)}, "bias"),
        ({"bias": ("=2",)}, "bias"),
        ({"bias": ("dragon=inf",)}, "bias"),
        ({"ban_words": ("",)}, "ban_words"),
        ({"stop": ("",)}, "stop"),
        ({"best_of": 2, "num_sequences": 3}, "best_of"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens"),
        ({"decoding": "diverse_beam", "num_beams": 5, "num_beam_groups": 2}, "num_beam_groups"),
        ({"replay": "7"}, "replay"),
        ({"replay": "7/a/2"}, "replay"),
        ({"replay": "7/0/2", "seed": 7}, "replay"),
        ({"replay": "7/0/2", "num_sequences": 2}, "replay"),
    ],
)
def test_contradictory_options_are_refused_by_name(given: dict, option: str) -> None:
    with pytest.raises(UserError) as caught:
        decoding_options(given)
    assert caught.value.option == option


def test_biases_and_banned_words() -> None:
    options = decoding_options({"bias": ("dragon=+2", "a=b=-1.5"), "ban_words": ("king",)})
    assert options.biases() == {"dragon": 2.0, "a=b": -1.5, "king": float("-inf")}
