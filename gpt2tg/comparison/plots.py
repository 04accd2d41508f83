"""The plots of the report: token probabilities along a text, and the distance of each strategy from human text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from gpt2tg.comparison.svg import COLOURS, draw_svg

# Longest name of a strategy beside its bar, in characters.
MAX_NAME, MAX_NAME_NARROW = 46, 22


@dataclass(frozen=True)
class Curve:
    """The probability of each token of a text."""

    name: str
    probabilities: Sequence[float]
    is_human: bool = False


def probability_plot(curves: Sequence[Curve]) -> Markup:
    """Plot the probability of each token along some texts, one below the other: Holtzman et al. (2020), figure 2."""

    def draw(figure: Figure, is_narrow: bool) -> None:
        figure.set_figheight(1.55 * len(curves) + 0.5)
        rows = figure.subplots(len(curves), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        longest = max(2, *(len(curve.probabilities) for curve in curves))
        for axes, curve in zip(rows, curves, strict=True):
            colour = COLOURS["human" if curve.is_human else "machine"]
            places = np.arange(1, len(curve.probabilities) + 1)
            axes.fill_between(places, curve.probabilities, color=colour, alpha=0.16, linewidth=0)
            axes.plot(places, curve.probabilities, color=colour, linewidth=1.4)
            axes.set_title(curve.name)
            axes.set(ylim=(0, 1.02), yticks=(0, 0.5, 1), xlim=(1, longest))
            axes.grid(axis="y", color=COLOURS["rule"], linewidth=0.6)
        rows[-1].set_xlabel("token of the text")

    names = ", ".join(curve.name for curve in curves)
    return draw_svg("probability", f"Probability of each token along the text: {names}", draw)


def distance_plot(distances: Mapping[str, float], chance: float) -> Markup:
    """Plot the distance of each strategy from human text.

    Args:
        distances: the distance by the name of the strategy.
        chance: the distance that human text has from itself by chance, shown as a band.
    """
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
        longest = MAX_NAME_NARROW if is_narrow else MAX_NAME
        axes.set_yticks(places, [_shortened(name, longest) for name in ordered])
        axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
        axes.set(xlim=(0, max(*values, chance) * 1.14), ylim=(-0.7, len(ordered) - 0.3))
        axes.set_xlabel("distance from human text")

    return draw_svg("distance", "Distance of each strategy from human text", draw)


def _shortened(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
