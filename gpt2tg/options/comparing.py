"""The comparison of decoding strategies, and the search for settings."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2tg.options.data import Examples
from gpt2tg.options.fields import Options, option

# How many prompts are taken from a reference text by default.
DEFAULT_REFERENCE_PROMPTS = 8
MOST_TUNING_PROMPTS = 128
# What --tune generates for each prompt, how many sequences at a time, and the settings that it searches.
TUNING_NEW_TOKENS = 80
TUNING_BATCH_SIZE = 64
SEARCHED_SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram")
# Settings that --tune ignores: it samples one sequence for each prompt with top_p.
NOT_FOR_TUNING = ("decoding", "replay", "num_sequences", "best_of", "max_time")


@dataclass(frozen=True)
class CompareOptions(Options):
    """What is compared, with what, and where the comparison goes."""

    compare: bool = option(
        False,
        "generate from the prompts with every strategy, print texts and metrics, and exit",
        group="comparison",
        is_common=True,
    )
    strategies: str | None = option(
        None,
        "the strategies to compare, each with its settings: greedy,top_p:temperature=0.9:top_p=0.95,beam:num_beams=3",
        group="comparison",
        metavar="LIST",
        shown_default="all",
    )
    reference: str | None = option(
        None,
        "human text to compare with; without --prompt and --prompts_file the prompts are taken from it",
        group="comparison",
        metavar="FILE",
        is_common=True,
    )
    examples: Examples = option(
        "line",
        "what one example of --reference is: a non-empty line, a paragraph, or the whole file",
        group="comparison",
        choices=Examples,
    )
    num_prompts: int | None = option(
        None,
        "number of prompts to take from --reference, evenly spread over the file",
        group="comparison",
        low=1,
        shown_default=f"{DEFAULT_REFERENCE_PROMPTS}; with --tune as many as it has, at most {MOST_TUNING_PROMPTS}",
    )
    train_file: str | None = option(
        None,
        "the text that the model learned from: measures how many words in a row are copied from it (memorising)",
        group="comparison",
        metavar="FILE",
    )
    report: str | None = option(
        None,
        "write the comparison to this HTML page, which any browser opens",
        group="comparison",
        metavar="FILE.html",
        is_common=True,
    )
    output: str | None = option(
        None,
        "write the comparison to this file: a .json with everything, a .csv or .md with the table",
        group="comparison",
        metavar="FILE",
    )
    overwrite: bool = option(False, "replace existing files of --output and --report", group="comparison")


@dataclass(frozen=True)
class TuneOptions(Options):
    """The search for the settings that suit a model."""

    tune: bool = option(
        False,
        "search the settings whose texts are most like --reference, and print them beside the defaults",
        group="tuning",
        is_common=True,
    )
    budget: float = option(
        300.0,
        "time in seconds for the search and the check of its result, not counting loading and --report",
        group="tuning",
        above=0,
    )
    apply: bool = option(
        False,
        "save the settings found in the model's directory, as its defaults, if the gain is clear",
        group="tuning",
        is_common=True,
    )
