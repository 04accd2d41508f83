"""One prompt through every decoding strategy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from gpt2tg.generation import Generator
from gpt2tg.options import STRATEGIES, DecodingOptions


def strategies_to_compare(base: DecodingOptions) -> dict[str, DecodingOptions]:
    """What is compared, under the name it is shown by: each strategy at work, and several texts by top_p.

    Args:
        base: settings that all of them share.
    """
    one = replace(base, num_sequences=1)
    return {
        "greedy": replace(one, decoding="greedy"),
        f"beam, {base.num_beams} beams": replace(one, decoding="beam"),
        f"beam, {base.num_beams} beams, no 2-gram twice": replace(one, decoding="beam", no_repeat_ngram=2),
        "sample": replace(one, decoding="sample"),
        "top_k": replace(one, decoding="top_k"),
        "top_p": replace(one, decoding="top_p"),
        f"top_p, {base.sequences} texts": replace(base, decoding="top_p", num_sequences=base.sequences),
    }


def compare_strategies(generator: Generator, prompt: str, base: DecodingOptions, write: Callable[[str], None]) -> None:
    """Write each strategy's texts under a heading that says what it does."""
    for heading, options in strategies_to_compare(base).items():
        write(f"=== {heading}: {STRATEGIES[options.decoding].summary} ===\n")
        for sample in generator.generate(prompt, options):
            write(f"{sample.text}\n\n")
