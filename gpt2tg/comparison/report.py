"""The report: one page that needs no network, with texts, figures and pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gpt2tg.comparison.compare import Comparison, Result
from gpt2tg.comparison.plots import Line, distance_plot, heat_map, probability_plot
from gpt2tg.comparison.table import columns_of, shown
from gpt2tg.generation.generator import Generator, Sample
from gpt2tg.inspection.tokens import InspectedToken, inspect_sample
from gpt2tg.io.outputs import write_whole
from gpt2tg.tuning.tune import SEARCHED, Tuning, cells, verdict

FORMATS = (".html",)

# A page with everything that a long comparison writes could not be read.
MOST_PROMPTS = 4
MOST_TEXTS = 3
ALTERNATIVES = 5

# Tokens are shaded in so many steps; the last one is for those less probable than e to the power of minus 9.
SHADES = 9


@dataclass(frozen=True)
class ShownToken:
    """A token as the page has it."""

    text: str
    shade: int
    number: int
    """Its place among the details that the page shows on demand."""


@dataclass(frozen=True)
class Card:
    """One text."""

    name: str
    note: str
    tokens: list[ShownToken]
    is_human: bool


@dataclass(frozen=True)
class Prompt:
    """A prompt and what was written to it."""

    text: str
    cards: list[Card]


class _Page:
    """Collects the details of all tokens while cards are made."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._inspected: dict[int, list[InspectedToken]] = {}
        self.details: list[list[object]] = []

    def inspect(self, sample: Sample) -> list[InspectedToken]:
        if id(sample) not in self._inspected:
            self._inspected[id(sample)] = inspect_sample(self._generator, sample, ALTERNATIVES)
        return self._inspected[id(sample)]

    def card(self, result: Result, sample: Sample) -> Card:
        tokens = [self._token(token) for token in self.inspect(sample) if token.text]
        if tokens:  # the space between the prompt and the text would look like an indent
            tokens[0] = replace(tokens[0], text=tokens[0].text.removeprefix(" ") or tokens[0].text)
        perplexity = math.exp(-sample.logprob / len(sample.ids)) if sample.ids else math.nan
        note = f"{len(sample.ids)} tokens, perplexity {perplexity:.1f}"
        return Card(result.name, note, tokens, result.options is None)

    def _token(self, token: InspectedToken) -> ShownToken:
        self.details.append(
            [
                token.text,
                _short(token.probability),
                token.rank,
                round(token.entropy, 2),
                [[other.text, _short(other.probability)] for other in token.alternatives],
            ]
        )
        # A line break alone could not be pointed at.
        return ShownToken(
            token.text.replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n"),
            max(0, min(SHADES, round(-token.logprob))),
            len(self.details) - 1,
        )


def page(generator: Generator, comparison: Comparison, model: str, tuning: dict[str, Any] | None = None) -> str:
    """The page for a comparison, as HTML.

    Args:
        model: the name of the model, to be shown.
        tuning: what stands on the page of a search.

    Raises:
        RunError: the model's logits are not finite.
    """
    collected = _Page(generator)
    prompts = [_prompt(collected, comparison, number) for number in range(len(comparison.prompts[:MOST_PROMPTS]))]
    return render(
        title=f"How {Path(model).name or model} writes",
        tuning=tuning,
        lead=_lead(comparison),
        comparison=comparison,
        columns=columns_of(comparison),
        prompts=prompts,
        details=collected.details,
        probability_plot=_probabilities(collected, comparison),
        has_human=comparison.human is not None,
        has_beams=any(result.options and result.options.strategy.beams for result in comparison.results),
        distance_plot=distances(comparison),
        chance=comparison.human.distance if comparison.human else None,
    )


def tuning_page(generator: Generator, found: Tuning, model: str) -> str:
    """The page for a search: what it found, where it went, and both settings compared.

    Raises:
        RunError: the model's logits are not finite.
    """
    end = found.end
    best = end.tuned.options
    mark = (best.temperature, best.effective_top_p or 1.0)
    tuning = {
        "names": SEARCHED,
        "rows": [{"name": standing.name, "cells": cells(standing)} for standing in (end.default, end.tuned)],
        "verdict": verdict(end),
        "note": f"{found.tried} settings were tried in {found.seconds:.0f} seconds. Human text is "
        f"{end.human_distance:.2f} from itself, by chance.",
        "heat_map": heat_map(found.cells, ("temperature", "top-p"), mark) if len(found.cells) > 1 else None,
    }
    return page(generator, end.comparison, model, tuning)


def render(**values: object) -> str:
    """The template with its values; every text among them is escaped."""
    environment = Environment(
        loader=PackageLoader("gpt2tg.comparison"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html")
    return template.render(shown=shown, shades=SHADES, **values)


def write_report(html: str, path: Path) -> None:
    """Write the page.

    Raises:
        RunError: it cannot be written.
    """
    write_whole(path, html)


def _lead(comparison: Comparison) -> str:
    prompts, strategies = len(comparison.prompts), len(comparison.results)
    texts = sum(result.figures.texts for result in comparison.results)
    return (
        f"{_count(prompts, 'prompt')}, {_count(strategies, 'strategy', 'strategies')}, {_count(texts, 'text')}, "
        f"seed {comparison.seed}."
    )


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _prompt(collected: _Page, comparison: Comparison, number: int) -> Prompt:
    cards = [
        collected.card(result, sample)
        for result in comparison.results
        for sample in [s for s in result.samples if s.prompt_index == number][:MOST_TEXTS]
    ]
    prompt = comparison.prompts[number]
    human = _human_to(comparison, prompt)
    if human is not None and comparison.human is not None:
        cards.insert(0, collected.card(comparison.human, human))
    return Prompt(prompt, cards)


def _human_to(comparison: Comparison, prompt: str) -> Sample | None:
    samples: Sequence[Sample] = comparison.human.samples if comparison.human else ()
    return next((sample for sample in samples if sample.prompt == prompt), None)


def probabilities(generator: Generator, comparison: Comparison) -> Markup | None:
    """The picture of probabilities along a text searched by beams, one that is drawn, and a human one.

    Without beams, two that are drawn.
    """
    return _probabilities(_Page(generator), comparison)


def _probabilities(collected: _Page, comparison: Comparison) -> Markup | None:
    beams, drawn = (
        [r for r in comparison.results if r.options and (r.options.strategy.beams, r.options.strategy.samples) == kind]
        for kind in ((True, False), (False, True))
    )
    results = [*beams[:1], *drawn[: 1 if beams else 2]]
    found = [(result.name, result.samples[0], False) for result in results]
    if comparison.human is not None:
        human = _human_to(comparison, comparison.prompts[0]) or comparison.human.samples[0]
        found.append(("human text", human, True))
    lines = [
        Line(name, [token.probability for token in collected.inspect(sample)], is_human)
        for name, sample, is_human in found
        if sample.ids
    ]
    return probability_plot(lines) if lines else None


def distances(comparison: Comparison) -> Markup | None:
    """The picture of how far each strategy is from human text; None without any."""
    if comparison.human is None or comparison.human.distance is None:
        return None
    known = {r.name: r.distance for r in comparison.results if r.distance is not None and math.isfinite(r.distance)}
    return distance_plot(known, comparison.human.distance) if known else None


def _short(probability: float) -> float:
    """Three significant digits: the page need not carry more."""
    return float(f"{probability:.3g}")
