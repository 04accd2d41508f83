"""The decoding settings in plain words, and presets of them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import Field, dataclass
from typing import Any

from gpt2tg.options import DecodingOptions, plain_type

# What the page calls each setting. Its help is that of the option.
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

# The page has other ways to ask for several texts.
NOT_ON_THE_PAGE = frozenset({"num_sequences", "best_of"})

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
    default = Preset("default", "Balanced", "The settings that the model has without a choice.", {})
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
    low, high = (rule["above"] if rule["low"] is None else rule["low"]), rule["high"]
    return {
        "name": field.name,
        "label": LABELS[field.name],
        "help": without_dashes(rule["help"]),
        "type": TYPES[plain_type(DecodingOptions, field.name)],
        "default": list(field.default) if isinstance(field.default, tuple) else field.default,
        "shown_default": None if rule["shown_default"] is None else without_dashes(rule["shown_default"]),
        "minimum": low,
        "is_minimum_excluded": rule["above"] is not None,
        "maximum": high,
        "choices": None if rule["choices"] is None else list(rule["choices"]),
        "group": rule["group"],
        "is_common": rule["is_common"],
    }


def without_dashes(message: str) -> str:
    """Return a message with its flags as the names of settings."""
    return re.sub(r"--(\w+)", r"\1", message)
