"""The decoding settings in plain words, and presets of them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import Field, dataclass
from typing import Any

from gpt2tg.options import STRATEGIES, DecodingOptions, StrategyName, plain_type

# What the page calls each setting.
LABELS = {
    "decoding": "How the next word is chosen",
    "temperature": "Daring",
    "top_k": "Choose among so many words",
    "top_p": "Leave out unlikely words",
    "min_p": "Leave out words far less likely than the best",
    "typical_p": "Keep to what is usual at each place",
    "penalty_alpha": "Avoid resembling what was said",
    "seed": "Number of the dice",
    "replay": "Repeat a recorded text",
    "num_beams": "Versions kept in mind",
    "num_beam_groups": "Groups of versions",
    "diversity_penalty": "Difference between the groups",
    "length_penalty": "Prefer long versions",
    "early_stopping": "When the search ends",
    "repetition_penalty": "Avoid words that were used",
    "presence_penalty": "Avoid words that were used, however often",
    "frequency_penalty": "Avoid words the more often they were used",
    "penalty_window": "How far back used words count",
    "no_repeat_ngram": "Never repeat so many words in a row",
    "ban_words": "Forbidden words",
    "bias": "Favoured or disfavoured words",
    "max_length": "Longest text, with what was there",
    "max_new_tokens": "How much to write",
    "min_new_tokens": "Write at least",
    "suppress_eos": "Never end the text",
    "stop": "Stop at",
    "keep_stop": "Keep the words it stops at",
    "end_at_sentence": "End with a complete sentence",
    "prompt_lookup": "Guess ahead",
    "max_time": "Longest time to write",
    "overflow": "When the text is too long for the model",
}

# What the page says of each setting. The help of the options is for those who know how a model chooses.
HELP = {
    "decoding": "by chance, or always what is likeliest",
    "temperature": "lower keeps to what is likely, higher dares more; 0 leaves nothing to chance",
    "top_k": "at each place, the model can choose only this many of its likeliest words",
    "top_p": "the model chooses among the likeliest words, as many as have this share of all probability; 1 is all",
    "min_p": "leaves out words that have less than this share of the likeliest word's probability; 0.1 is a tenth",
    "typical_p": "leaves out words that are much more or much less expected than is usual there; lower leaves out more",
    "penalty_alpha": "higher avoids words that resemble what the text already says; 0 is off",
    "seed": "the same seed, words and settings give the same text",
    "replay": "writes a text again, from three numbers in its record: seed, prompt and sample, such as 11/0/2",
    "num_beams": "the search keeps this many versions of the text and goes on with the likeliest; more is slower",
    "num_beam_groups": "the versions are kept in this many groups, which avoid each other's words",
    "diversity_penalty": "higher makes the groups differ more",
    "length_penalty": "higher prefers longer versions, below 0 shorter ones",
    "early_stopping": "true: at once when there are enough complete versions; false: when a better one is unlikely; "
    "never: when a better one is impossible",
    "repetition_penalty": "above 1, words that the text already has become less likely; 1 is off, 1.2 is much",
    "presence_penalty": "higher makes words that the text already has less likely; 0 is off",
    "frequency_penalty": "higher makes a word less likely each time it is used; 0 is off",
    "penalty_window": "only words among the last tokens, as many as this, count as used",
    "no_repeat_ngram": "this many tokens in a row are never written twice, which ends loops: 4, for example; 0 is off",
    "ban_words": "the model never writes these words, one on each line",
    "bias": "a word and a number on each line: dragon=+2 is likelier, dragon=-2 less likely",
    "max_length": "takes the place of max_new_tokens: the length in tokens, the words before included",
    "max_new_tokens": "at most this many tokens; a token is a word or a part of one",
    "min_new_tokens": "the text does not end before it has this many new tokens",
    "suppress_eos": "the model goes on to the full length, even where it would end the text",
    "stop": r"ends the text before any of these, one on each line; \n is a line break",
    "keep_stop": "ends the text after them instead of before",
    "end_at_sentence": "leaves out a last sentence for which there was no room",
    "prompt_lookup": "guesses words from what followed the same words before, which changes the speed, never the text; "
    "0 is off",
    "max_time": "the model stops after this many seconds",
    "overflow": "error: it does not write; truncate: it no longer sees the beginning; slide: it forgets the beginning "
    "while it writes",
}


@dataclass(frozen=True)
class StrategyWords:
    """A decoding strategy in plain words."""

    label: str
    summary: str


STRATEGY_WORDS: Mapping[StrategyName, StrategyWords] = {
    "greedy": StrategyWords("Always the likeliest word", "leaves nothing to chance, and often repeats itself"),
    "beam": StrategyWords(
        "The likeliest text", "keeps several versions and goes on with the likeliest; leaves nothing to chance"
    ),
    "diverse_beam": StrategyWords(
        "Likely texts that differ", "keeps groups of versions that avoid each other's words: for several candidates"
    ),
    "sample": StrategyWords("Chance among all words", "any word can come, an unlikely one seldom"),
    "top_k": StrategyWords("Chance among a few words", "draws one of the likeliest words, always of as many"),
    "top_p": StrategyWords(
        "Chance among likely words", "draws from few words where the model is sure, and from many where it is not"
    ),
    "beam_sample": StrategyWords("Likely texts by chance", "keeps several versions, and draws how they go on"),
    "contrastive": StrategyWords(
        "Little repetition",
        "takes the likely word that least resembles the text; leaves nothing to chance",
    ),
}

# The page has other ways to ask for several texts.
NOT_ON_THE_PAGE = frozenset({"num_sequences", "best_of"})

# The page always gives max_new_tokens, so that the default of the other length is not used.
WITHOUT_SHOWN_DEFAULT = frozenset({"max_length"})

# What the page takes where neither it nor a flag says anything: a text may grow beyond the context length.
PAGE_DEFAULTS: Mapping[str, Any] = {"overflow": "truncate"}

TYPES = {int: "integer", float: "number", bool: "boolean", str: "string", tuple: "strings"}


@dataclass(frozen=True)
class Preset:
    """Settings to choose together."""

    name: str
    label: str
    description: str
    settings: Mapping[str, Any]


PRESETS = (
    Preset(
        "careful",
        "Careful",
        "Stays close to what the model finds likely: steady, and sometimes dull.",
        {"decoding": "top_p", "temperature": 0.5, "top_p": 0.8, "repetition_penalty": 1.1},
    ),
    Preset(
        "lively",
        "Lively",
        "Dares more unusual words: surprising, and sometimes wrong.",
        {"decoding": "top_p", "temperature": 1.0, "top_p": 0.95},
    ),
)


def presets(tuned: Mapping[str, Any]) -> list[Preset]:
    """Return all presets: the defaults first, and those that were tuned for the model last, if there are any."""
    default = Preset("default", "Balanced", "The default settings.", {})
    found = [default, *PRESETS]
    if tuned:
        found.append(Preset("tuned", "Tuned", "The settings that --tune found best for this model.", dict(tuned)))
    return found


def settings_on_the_page() -> list[Field[Any]]:
    """Return the options that the page shows, in their order."""
    return [field for field in dataclasses.fields(DecodingOptions) if field.name not in NOT_ON_THE_PAGE]


def describe(field: Field[Any]) -> dict[str, Any]:
    """Return what the page shows of an option: its names, its help, its type and range."""
    rule = field.metadata
    shown = None if field.name in WITHOUT_SHOWN_DEFAULT else rule["shown_default"]
    low, high = (rule["above"] if rule["low"] is None else rule["low"]), rule["high"]
    return {
        "name": field.name,
        "label": LABELS[field.name],
        "help": HELP[field.name],
        "type": TYPES[plain_type(DecodingOptions, field.name)],
        "default": list(field.default) if isinstance(field.default, tuple) else field.default,
        "shown_default": None if shown is None else without_dashes(shown),
        "minimum": low,
        "is_minimum_excluded": rule["above"] is not None,
        "maximum": high,
        "choices": None if rule["choices"] is None else list(rule["choices"]),
        "group": rule["group"],
        "is_common": rule["is_common"],
    }


def describe_strategies() -> list[dict[str, Any]]:
    """Return what the page shows of each strategy, and the settings that it uses."""
    return [
        {"name": name, **vars(STRATEGY_WORDS[name]), "uses": list(strategy.uses), "samples": strategy.samples}
        for name, strategy in STRATEGIES.items()
    ]


def without_dashes(message: str) -> str:
    """Return a message with its flags as the names of settings."""
    return re.sub(r"--(\w+)", r"\1", message)
