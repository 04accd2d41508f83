"""The report of tuning: the tuned settings and the heat map, before the comparison of both settings."""

from __future__ import annotations

from gpt2tg.comparison.report import render, report_page
from gpt2tg.generation.generator import Generator
from gpt2tg.tuning.heat_map import heat_map
from gpt2tg.tuning.search import Tuning
from gpt2tg.tuning.search_space import SearchedSettings
from gpt2tg.tuning.summary import HEADINGS, settings_row, verdict


def tuning_page(generator: Generator, tuning: Tuning, model: str) -> str:
    """Return the page of a search as HTML.

    Args:
        model: name of the model, for the title.

    Raises:
        RunError: the model's logits are not finite.
    """
    check = tuning.check
    best = SearchedSettings.of(check.tuned.options)
    section = render(
        "gpt2tg.tuning",
        "tuning.html",
        verdict=verdict(check),
        headings=HEADINGS,
        rows=[settings_row(check.default), settings_row(check.tuned)],
        tried=tuning.tried,
        seconds=f"{tuning.seconds:.0f}",
        human_distance=f"{check.human_distance:.2f}",
        heat_map=heat_map(tuning.cells, (best.temperature, best.top_p)) if len(tuning.cells) > 1 else None,
    )
    return report_page(generator, check.comparison, model, section)
