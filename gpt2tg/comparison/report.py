"""The report: one HTML page with texts, metrics and plots, which loads nothing from the network."""

from __future__ import annotations

import math
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gpt2tg.comparison.cards import SHADES, CardMaker, human_continuation
from gpt2tg.comparison.plots import Curve, distance_plot, probability_plot
from gpt2tg.comparison.results import HUMAN, Comparison, Result
from gpt2tg.comparison.table import cell_text, used_columns
from gpt2tg.generation.generator import Generator
from gpt2tg.io.outputs import write_whole

FORMATS = (".html",)


def report_page(
    generator: Generator,
    comparison: Comparison,
    model: str,
    opening: Markup | None = None,
    maker: CardMaker | None = None,
) -> str:
    """Return the page of a comparison as HTML.

    Args:
        model: name of the model, for the title.
        opening: sections to put before those of the comparison.
        maker: has inspected some of the texts already; None if the model is to run now for all that are shown.

    Raises:
        RunError: the model's logits are not finite.
    """
    maker = maker or CardMaker(generator)
    return render(
        "gpt2tg.comparison",
        "report.html",
        title=f"How {Path(model).name or model} writes",
        lead=_lead(comparison),
        opening=opening,
        comparison=comparison,
        columns=used_columns(comparison),
        cell_text=cell_text,
        shades=SHADES,
        prompts=maker.cards_by_prompt(comparison),
        probability_plot=_probability_plot(maker, comparison),
        details=maker.details,
        has_human=comparison.human is not None,
        has_beams=any(result.options and result.options.strategy.beams for result in comparison.results),
        distance_plot=plot_distances(comparison),
        chance=comparison.human.distance if comparison.human else None,
    )


def render(package: str, template: str, **values: object) -> Markup:
    """Fill a template of a package. Every text among the values is escaped."""
    environment = Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return Markup(environment.get_template(template).render(**values))


def write_report(html: str, path: Path) -> None:
    """Write the page.

    Raises:
        RunError: the file cannot be written.
    """
    write_whole(path, html)


def plot_probabilities(generator: Generator, comparison: Comparison) -> Markup | None:
    """Plot the token probabilities of a beam search, of sampling, and of human text; None if all texts are empty.

    Without a beam search, two strategies that sample are shown.

    Raises:
        RunError: the model's logits are not finite.
    """
    return _probability_plot(CardMaker(generator), comparison)


def _probability_plot(maker: CardMaker, comparison: Comparison) -> Markup | None:
    beams = [result for result in comparison.results if _kind(result) == (True, False)]
    sampled = [result for result in comparison.results if _kind(result) == (False, True)]
    results = [*beams[:1], *sampled[: 1 if beams else 2]]
    found = [(result.name, result.samples[0], False) for result in results]
    if comparison.human is not None:
        human = human_continuation(comparison, comparison.prompts[0]) or comparison.human.samples[0]
        found.append((HUMAN, human, True))
    curves = [
        Curve(name, [token.probability for token in maker.inspect(sample)], is_human)
        for name, sample, is_human in found
        if sample.ids
    ]
    return probability_plot(curves) if curves else None


def _kind(result: Result) -> tuple[bool, bool] | None:
    """Return whether a strategy searches with beams, and whether it samples; None for human text."""
    return (result.options.strategy.beams, result.options.strategy.samples) if result.options else None


def plot_distances(comparison: Comparison) -> Markup | None:
    """Plot the distance of each strategy from human text; None without a reference."""
    if comparison.human is None or comparison.human.distance is None:
        return None
    known = {
        result.name: result.distance
        for result in comparison.results
        if result.distance is not None and math.isfinite(result.distance)
    }
    return distance_plot(known, comparison.human.distance) if known else None


def _lead(comparison: Comparison) -> str:
    """Return the line under the title: how much was compared, and the seed."""
    texts = sum(result.metrics.texts for result in comparison.results)
    parts = [
        _count(len(comparison.prompts), "prompt"),
        _count(len(comparison.results), "strategy", "strategies"),
        _count(texts, "text"),
        f"seed {comparison.seed}.",
    ]
    return ", ".join(parts)


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
