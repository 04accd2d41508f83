"""Parsing of --strategies."""

from __future__ import annotations

import pytest

from gpt2tg.comparison.strategies import parse_strategies
from gpt2tg.errors import UserError
from gpt2tg.options import STRATEGIES, DecodingOptions

BASE = DecodingOptions(seed=3, num_sequences=7, temperature=0.9)


def chosen(words: str | None, base: DecodingOptions = BASE) -> dict[str, DecodingOptions]:
    return parse_strategies(base, words, say=lambda text: pytest.fail(text))


def test_all_strategies_by_default() -> None:
    found = chosen(None)
    assert list(found) == list(STRATEGIES)
    assert all(options.decoding == name and options.seed == 3 for name, options in found.items())


def test_number_of_texts_is_limited_by_the_strategy() -> None:
    texts = {name: options.sequences for name, options in chosen(None).items()}
    assert texts["greedy"] == texts["contrastive"] == 1
    assert texts["beam"] == 5
    assert texts["top_p"] == texts["sample"] == 7
    assert chosen("beam:num_beams=9")["beam num_beams=9"].sequences == 7


def test_settings_apply_to_one_strategy_alone() -> None:
    found = chosen(
        "top_p,top_p:temperature=0.5:top_p=0.8, beam:early-stopping=true:no_repeat_ngram=2".replace("-", "_")
    )
    assert [options.temperature for options in found.values()] == [0.9, 0.5, 0.9]
    assert found["top_p temperature=0.5 top_p=0.8"].top_p == 0.8
    assert found["beam early_stopping=true no_repeat_ngram=2"].no_repeat_ngram == 2


def test_own_length_replaces_the_shared_one() -> None:
    base = DecodingOptions(max_length=50)
    options = chosen("greedy:max_new_tokens=9", base)["greedy max_new_tokens=9"]
    assert (options.max_new_tokens, options.max_length) == (9, None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("gredy", "gredy is unknown: did you mean greedy?"),
        ("greedy,", "an empty name is unknown: choose from greedy, beam"),
        ("top_p:temprature=1", "top_p:temprature=1: temprature=1 is not a setting: did you mean temperature=...?"),
        ("top_p:temperature", "temperature is not a setting: did you mean temperature=...?"),
        ("top_p:temperature=hot", "temperature hot is not valid: give a number"),
        ("top_p:top_p=1.5", "top_p 1.5 is out of range: it must be at least 0 and at most 1"),
        ("top_p:zzz=1", "zzz=1 is not a setting: write settings like top_p:temperature=0.7"),
        ("diverse_beam:num_beam_groups=3", "3 does not divide --num_beams 5 evenly"),
        ("top_p:decoding=beam", "decoding=beam is not a setting"),
    ],
)
def test_invalid_strategies_are_refused(words: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        chosen(words)
    assert caught.value.option == "strategies"
    assert message in str(caught.value)


def test_unused_setting_gives_a_notice() -> None:
    said: list[str] = []
    parse_strategies(BASE, "greedy:temperature=0.5", said.append)
    assert said == ["--strategies greedy:temperature=0.5: temperature is not used: --decoding greedy does not use it"]
