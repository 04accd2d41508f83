"""matplotlib figures as inline SVG, in the fonts and the light or dark colours of the page around them.

matplotlib accepts only fixed colours. So every CSS variable of the page has a placeholder colour, which is replaced by
the variable once the figure is drawn.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure

# CSS variable of the page -> its placeholder in a drawing.
COLOURS = {
    "ink": "#010101",
    "faint": "#020202",
    "rule": "#030303",
    "paper": "#040404",
    "machine": "#050505",
    "human": "#060606",
}

# Text scales with its SVG: letters that suit a wide page are illegible on a phone. So each figure is drawn in two
# widths, in inches of 72 pixels, and CSS shows the one that fits the screen.
WIDTHS = {"wide": 10.0, "narrow": 4.9}

STYLE: dict[Any, Any] = {  # matplotlib's stubs want its 300 setting names as literals
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


def draw_svg(name: str, label: str, draw: Callable[[Figure, bool], None]) -> Markup:
    """Draw a figure in both widths, and return the two SVG elements.

    Args:
        name: prefix of all ids, so that figures on one page do not share any.
        label: what the figure shows, for screen readers.
        draw: draws into a figure of the right width, and sets its height. The second argument is true for the narrow
            drawing.
    """
    return Markup("").join(_draw_width(name, width, label, draw) for width in WIDTHS)


def _draw_width(name: str, width: str, label: str, draw: Callable[[Figure, bool], None]) -> Markup:
    prefix = f"{name}-{width}"
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": prefix}):
        figure = Figure(figsize=(WIDTHS[width], 1), layout="constrained")
        draw(figure, width == "narrow")
        target = io.StringIO()
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = target.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)  # the font family is the page's
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    for variable, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    opening = re.search(r'<svg[^>]*(viewBox="[^"]*")[^>]*>', svg)
    if opening is None:
        raise AssertionError("matplotlib wrote no SVG element")
    attributes = f'class="plot {width}" role="img" aria-label="{escape(label)}" {opening[1]}'
    return Markup(f"<svg {attributes}>" + svg[opening.end() :])
