"""The heat map of the report: distance from human text by temperature and top-p."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from gpt2tg.comparison.svg import COLOURS, draw_svg

# Size of a cell, in units of the distance between two cells.
CELL_WIDTH, CELL_HEIGHT = 0.94, 0.92


def heat_map(cells: Mapping[tuple[float, float], float], best: tuple[float, float]) -> Markup:
    """Draw the distance for pairs of settings; the smaller the distance, the stronger the colour.

    Args:
        cells: the distance by (temperature, top-p); pairs without one stay empty.
        best: the pair to mark, if it is among them.
    """
    temperatures, top_ps = (sorted(set(values)) for values in zip(*cells, strict=True))

    def draw(figure: Figure, is_narrow: bool) -> None:
        figure.set_figheight(0.62 * len(top_ps) + 0.9)
        axes = figure.subplots()
        for (temperature, top_p), distance in cells.items():
            place = temperatures.index(temperature), top_ps.index(top_p)
            strength = _strength(distance, min(cells.values()), max(cells.values()))
            _draw_cell(axes, place, distance, strength, (temperature, top_p) == best, 11 if is_narrow else 13)
        axes.set(xlim=(-0.5, len(temperatures) - 0.5), ylim=(-0.5, len(top_ps) - 0.5))
        axes.set(xlabel="temperature", ylabel="top-p")
        axes.set_xticks(range(len(temperatures)), [f"{temperature:g}" for temperature in temperatures])
        axes.set_yticks(range(len(top_ps)), [f"{top_p:g}" for top_p in top_ps])
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(length=0)

    return draw_svg("heat", "Distance from human text by temperature and top-p", draw)


def _strength(distance: float, smallest: float, largest: float) -> float:
    """Return 1 for the smallest distance and 0 for the largest, on a log scale, since some are very large."""
    return 1 - math.log(distance / smallest) / max(math.log(largest / smallest), 1e-9)


def _draw_cell(
    axes: Axes, place: tuple[int, int], distance: float, strength: float, is_best: bool, font_size: int
) -> None:
    column, row = place
    corner = column - CELL_WIDTH / 2, row - CELL_HEIGHT / 2
    cell = partial(Rectangle, corner, CELL_WIDTH, CELL_HEIGHT)
    axes.add_patch(cell(facecolor=COLOURS["machine"], edgecolor="none", alpha=0.08 + 0.5 * strength))
    if is_best:
        axes.add_patch(cell(fill=False, edgecolor=COLOURS["human"], linewidth=2.5))
    weight = "bold" if is_best else "normal"
    axes.text(column, row, f"{distance:.1f}", ha="center", va="center", fontsize=font_size, fontweight=weight)
