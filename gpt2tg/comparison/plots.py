"""The pictures of the report: SVG inside the page, in its own colours and letters, light or dark.

matplotlib draws with colours that stand for names; in the page they become CSS variables.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import matplotlib
import matplotlib.patches
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure

# Name of a CSS variable -> the colour that stands for it in a drawing.
COLOURS = {
    "ink": "#010101",
    "faint": "#020202",
    "rule": "#030303",
    "paper": "#040404",
    "machine": "#050505",
    "human": "#060606",
}

# Each picture is drawn twice, for a page and for a phone; the page shows the one that fits. In inches of 72 units.
WIDTHS = {"wide": 10.0, "narrow": 4.9}

STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 13,
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["faint"],
    "axes.edgecolor": COLOURS["rule"],
    "axes.titlecolor": COLOURS["ink"],
    "axes.titlelocation": "left",
    "axes.titlesize": 13,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.color": COLOURS["rule"],
    "ytick.color": COLOURS["rule"],
    "xtick.labelcolor": COLOURS["faint"],
    "ytick.labelcolor": COLOURS["faint"],
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@dataclass(frozen=True)
class Line:
    """The probability of each token of a text."""

    name: str
    probabilities: Sequence[float]
    is_human: bool = False


def _drawn(name: str, label: str, draw: Callable[..., None]) -> Markup:
    """Both drawings of a picture as inline SVG, for the page to choose from."""
    return Markup("").join(
        _svg(f"{name}-{width}", label, inches, partial(draw, is_narrow=width == "narrow"))
        for width, inches in WIDTHS.items()
    )


def _svg(name: str, label: str, inches: float, draw: Callable[[Figure], None]) -> Markup:
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(inches, 1), layout="constrained")
        draw(figure)
        target = io.StringIO()
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = target.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    # The page has letters of its own; ids must not meet those of the other drawings.
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for variable, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    attributes = f'class="plot {name.rpartition("-")[2]}" role="img" aria-label="{escape(label)}"'
    box = re.search(r'viewBox="[^"]*"', svg)
    return Markup(f"<svg {attributes} {box[0] if box else ''}>" + svg[svg.index(">") + 1 :])


def probability_plot(lines: Sequence[Line]) -> Markup:
    """Probability of each token along the texts, one below the other: Holtzman et al. (2020), figure 2."""

    def draw(figure: Figure, is_narrow: bool) -> None:
        figure.set_figheight(1.55 * len(lines) + 0.5)
        rows = np.atleast_1d(figure.subplots(len(lines), 1, sharex=True, sharey=True))
        for axes, line in zip(rows, lines, strict=True):
            colour = COLOURS["human" if line.is_human else "machine"]
            places = np.arange(1, len(line.probabilities) + 1)
            axes.fill_between(places, line.probabilities, color=colour, alpha=0.16, linewidth=0)
            axes.plot(places, line.probabilities, color=colour, linewidth=1.4)
            axes.set_title(line.name)
            axes.set(ylim=(0, 1.02), yticks=(0, 0.5, 1), xlim=(1, max(2, *(len(a.probabilities) for a in lines))))
            axes.grid(axis="y", color=COLOURS["rule"], linewidth=0.6)
        rows[-1].set_xlabel("token of the text")

    names = ", ".join(line.name for line in lines)
    return _drawn("probability", f"Probability of each token along the text: {names}", draw)


def distance_plot(distances: dict[str, float], chance: float) -> Markup:
    """How far each strategy is from human text. `chance` is how far human texts are from themselves."""
    ordered = sorted(distances, key=lambda name: -distances[name])

    def draw(figure: Figure, is_narrow: bool) -> None:
        figure.set_figheight(0.36 * len(ordered) + 1.0)
        axes = figure.subplots()
        places = range(len(ordered))
        values = [distances[name] for name in ordered]
        axes.hlines(places, 0, values, color=COLOURS["rule"], linewidth=1.2)
        axes.scatter(values, places, s=70, color=COLOURS["machine"], zorder=3)
        axes.axvspan(0, chance, color=COLOURS["human"], alpha=0.16, linewidth=0)
        for place, value in zip(places, values, strict=True):
            axes.annotate(
                f"{value:.1f}", (value, place), (9, 0), textcoords="offset points", va="center", color=COLOURS["ink"]
            )
        axes.set_yticks(places, [_folded(name, 22 if is_narrow else 46) for name in ordered])
        axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
        axes.set(xlim=(0, max(*values, chance) * 1.14), ylim=(-0.7, len(ordered) - 0.3))
        axes.set_xlabel("distance from human text")

    return _drawn("distance", "Distance of each strategy from human text", draw)


def heat_map(cells: dict[tuple[float, float], float], names: tuple[str, str], best: tuple[float, float]) -> Markup:
    """A value for pairs of settings.

    Args:
        cells: the value by the settings along (x, y); the lower, the better.
        best: the pair to mark, if it is among them.
    """
    across, up = sorted({x for x, _ in cells}), sorted({y for _, y in cells})
    values = np.array([[cells.get((x, y), np.nan) for x in across] for y in up])
    lowest, highest = np.nanmin(values), np.nanmax(values)

    def draw(figure: Figure, is_narrow: bool) -> None:
        figure.set_figheight(0.62 * len(up) + 0.9)
        axes = figure.subplots()
        for row, y in enumerate(up):
            for column, x in enumerate(across):
                if np.isnan(values[row, column]):
                    continue
                # The nearest cells are the strongest; a logarithm, since some are very far.
                far = np.log(values[row, column] / lowest) / max(np.log(highest / lowest), 1e-9)
                is_best = (x, y) == best
                axes.add_patch(
                    matplotlib.patches.Rectangle(
                        (column - 0.47, row - 0.46),
                        0.94,
                        0.92,
                        facecolor=COLOURS["machine"],
                        alpha=0.08 + 0.5 * (1 - far),
                        edgecolor="none",
                    )
                )
                if is_best:
                    axes.add_patch(
                        matplotlib.patches.Rectangle(
                            (column - 0.47, row - 0.46),
                            0.94,
                            0.92,
                            fill=False,
                            edgecolor=COLOURS["human"],
                            linewidth=2.5,
                        )
                    )
                axes.text(
                    column,
                    row,
                    f"{values[row, column]:.1f}",
                    ha="center",
                    va="center",
                    fontsize=11 if is_narrow else 13,
                    fontweight="bold" if is_best else "normal",
                )
        axes.set(xlim=(-0.5, len(across) - 0.5), ylim=(-0.5, len(up) - 0.5), xlabel=names[0], ylabel=names[1])
        axes.set_xticks(range(len(across)), [f"{x:g}" for x in across])
        axes.set_yticks(range(len(up)), [f"{y:g}" for y in up])
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(length=0)

    return _drawn("heat", f"Distance from human text by {names[0]} and {names[1]}", draw)


def _folded(name: str, width: int) -> str:
    return name if len(name) <= width else name[: width - 1] + "…"
