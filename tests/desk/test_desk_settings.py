"""The settings of the page: each has a name in plain words, and presets are valid."""

from __future__ import annotations

import dataclasses

from gpt2tg.desk.settings import (
    LABELS,
    NOT_ON_THE_PAGE,
    describe,
    describe_strategies,
    presets,
    settings_on_the_page,
)
from gpt2tg.options import STRATEGIES, DecodingOptions


def test_each_setting_has_a_label_of_its_own() -> None:
    names = {field.name for field in dataclasses.fields(DecodingOptions)}
    assert LABELS.keys() | NOT_ON_THE_PAGE == names
    assert len(set(LABELS.values())) == len(LABELS)
    assert all(label.replace("_", " ") != name for name, label in LABELS.items())


def test_presets_are_valid_and_tuned_settings_come_last() -> None:
    tuned = {"decoding": "top_p", "temperature": 0.9}
    found = presets(tuned)
    assert [preset.name for preset in found] == ["default", "careful", "lively", "tuned"]
    assert [preset.name for preset in presets({})] == ["default", "careful", "lively"]
    for preset in found:
        DecodingOptions(**preset.settings)


def test_each_setting_and_strategy_is_explained_in_plain_words() -> None:
    jargon = ("logit", "distribution", "entropy", "surprisal", "sampling", "greedy", "beam search", "speculative")
    described = [describe(field) for field in settings_on_the_page()]
    strategies = describe_strategies()
    assert [strategy["name"] for strategy in strategies] == list(STRATEGIES)
    for words in [entry["help"] for entry in described] + [f"{one['label']} {one['summary']}" for one in strategies]:
        assert not any(word in words.lower() for word in jargon), words
        assert not words.endswith("."), words  # the page ends it


def test_help_names_settings_without_dashes() -> None:
    described = {field.name: describe(field) for field in settings_on_the_page()}
    assert not any("--" in f"{entry['help']}{entry['shown_default']}" for entry in described.values())
    assert described["top_p"]["maximum"] == 1
    assert (described["typical_p"]["minimum"], described["typical_p"]["is_minimum_excluded"]) == (0, True)
    assert (described["stop"]["type"], described["stop"]["default"]) == ("strings", [])
    assert described["decoding"]["choices"]
