"""Draws what the filters make of one next-token distribution: the picture in docs/decoding.md.

    python docs/figures/distributions.py                      # gpt2-tiny after "The old"
    python docs/figures/distributions.py --prompt "The old king said" --output king.png

Needs matplotlib beside the requirements. Every filter stands alone here, as if it were the only flag given.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, PercentFormatter
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout, nothing installed

from gpt2tg.decoding import filters
from gpt2tg.engine.contexts import new_context
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import Generator, load

PICTURE = Path(__file__).with_suffix(".png")

KEPT, REMOVED, BEFORE = "#2a7f8e", "#cfd4d8", "#1f2d3a"
INK, PALE = "#1f2d3a", "#6b7680"

# Smaller probabilities stand without a number; a number takes up this share of a panel.
SMALLEST_NUMBER = 0.005
WIDTH_OF_NUMBER = 0.2

FILTERS: dict[str, Callable[[Tensor], Tensor]] = {
    "the model itself": lambda logits: logits,
    "--temperature 0.7": lambda logits: filters.temperature(logits, 0.7),
    "--temperature 1.5": lambda logits: filters.temperature(logits, 1.5),
    "--top_k 5": lambda logits: filters.top_k(logits, 5),
    "--top_p 0.8": lambda logits: filters.top_p(logits, 0.8),
    "--min_p 0.1": lambda logits: filters.min_p(logits, 0.1),
}


@dataclass(frozen=True)
class Panel:
    """One distribution over the whole vocabulary, (V,), before and after a filter."""

    title: str
    before: Tensor
    after: Tensor

    @property
    def kept(self) -> Tensor:
        """Which tokens can still be drawn. (V,)"""
        return self.after > 0

    def note(self, shown: Tensor) -> str:
        """What the bars do not say: how much the tokens without a bar hold, or how many tokens are kept."""
        if self.kept.all():
            return f"the others hold {1 - self.after[shown].sum():.0%}"
        return f"keeps {int(self.kept.sum())} that held {self.before[self.kept].sum():.0%}"


def next_token_logits(generator: Generator, prompt: str) -> Tensor:
    """What the model says of the token after the prompt. (1, V)"""
    ids = generator.encode(prompt)
    return new_context(generator.model, len(ids)).start([ids]).cpu()


def panels_of(logits: Tensor) -> list[Panel]:
    """The distribution before and after each filter. (1, V) -> a panel each."""
    before = logits.softmax(dim=1)[0]
    return [Panel(title, before, change(logits).softmax(dim=1)[0]) for title, change in FILTERS.items()]


def label(generator: Generator, token: int) -> str:
    """A token as it can be read: its leading space made visible, a token without text by its name."""
    text = generator.tokenizer.decode([token])
    if not text:
        return "end of text" if token == generator.tokenizer.end_id else f"token {token}"
    visible = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return visible.replace(" ", "\N{OPEN BOX}")


def draw(panels: list[Panel], labels: list[str], shown: Tensor, prompt: str, output: Path) -> None:
    """Small multiples of horizontal bars; the same token stands in the same row of each.

    Args:
        shown: the ids of the tokens that are drawn, the most probable first. (T,)
    """
    matplotlib.rcParams.update({"font.family": "DejaVu Sans", "font.size": 9, "text.parse_math": False})
    figure = Figure(figsize=(10.6, 1.6 + 0.2 * len(labels)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True)
    axes[0].set_xscale("function", functions=(np.sqrt, np.square))
    axes[0].set_xlim(0, 1)
    axes[0].set_ylim(len(labels) - 0.4, -0.6)
    for axis, panel in zip(axes, panels, strict=True):
        _draw_bars(axis, panel, shown)
        axis.set_title(panel.title, loc="left", fontsize=9.5, fontweight="bold", color=INK, pad=17)
        axis.text(0, 1.008, panel.note(shown), transform=axis.transAxes, fontsize=8.5, color=PALE, in_layout=False)
        _quieten(axis)
    axes[0].set_yticks(range(len(labels)), labels)
    figure.legend(
        handles=[
            Patch(color=KEPT, label="can be drawn"),
            Line2D([], [], color=BEFORE, lw=0, marker="|", markersize=9, label="its probability before"),
            Patch(color=REMOVED, label="removed, with the probability it had"),
        ],
        loc="outside lower center",
        ncols=3,
        frameon=False,
        labelcolor=INK,
    )
    figure.get_layout_engine().set(wspace=0.04)
    title = f"The next token after \u201c{prompt}\u201d"
    figure.suptitle(title, x=0.008, ha="left", fontsize=12.5, fontweight="bold", color=INK)
    scale = "percent, on a square-root scale so that small ones can be seen"
    figure.text(0.996, 0.985, scale, ha="right", va="top", fontsize=8.5, color=PALE, in_layout=False)
    figure.savefig(output, dpi=180, facecolor="white", metadata={"Software": None})


def _draw_bars(axis: Axes, panel: Panel, shown: Tensor) -> None:
    """A bar for each token, with a number at its end as long as the number is worth reading."""
    for row, token in enumerate(shown.tolist()):
        before, after = float(panel.before[token]), float(panel.after[token])
        if not panel.kept[token]:
            axis.barh(row, before, height=0.72, color=REMOVED)
            continue
        axis.barh(row, after, height=0.72, color=KEPT)
        if before != after:
            axis.vlines(before, row - 0.36, row + 0.36, BEFORE, lw=1.1)
        if after < SMALLEST_NUMBER:
            continue
        is_apart = abs(math.sqrt(before) - math.sqrt(after)) > WIDTH_OF_NUMBER  # the number fits between the two
        place = after if is_apart else max(before, after)
        inside = place > 0.7  # no room on the right
        if inside and not is_apart:
            place = min(before, after)
        axis.annotate(
            f"{after:.0%}" if after >= 0.1 else f"{after:.1%}",
            (place, row),
            (-3 if inside else 3, -0.5),
            textcoords="offset points",
            ha="right" if inside else "left",
            va="center",
            fontsize=7,
            color="white" if inside else PALE,
        )


def _quieten(axis: Axes) -> None:
    """No frame; pale lines at a few percents."""
    axis.xaxis.set_major_locator(FixedLocator([0, 0.05, 0.25, 0.5, 1]))
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=None))
    axis.grid(axis="x", color="#e6e9eb", lw=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(length=0, labelcolor=INK)
    axis.tick_params(axis="x", labelcolor=PALE, labelsize=8)
    axis.spines[:].set_visible(False)
    axis.spines["left"].set(visible=True, color="#aab2b8")


def main() -> None:
    """Ask the model once, apply the filters, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name", default="gpt2-tiny", help="name or directory (default: gpt2-tiny)")
    parser.add_argument("--prompt", default="The old", help="what comes before the token (default: The old)")
    parser.add_argument("--tokens", type=int, default=20, help="how many are drawn, the most probable (default: 20)")
    parser.add_argument(
        "--output", type=Path, default=PICTURE, help=f"where to draw (default: {PICTURE.name} beside this)"
    )
    options = parser.parse_args()
    try:
        generator = load(options.model_name, "cpu")
    except UserError as error:
        parser.error(error.as_flag())
    panels = panels_of(next_token_logits(generator, options.prompt))
    shown = panels[0].before.topk(min(options.tokens, len(panels[0].before))).indices
    labels = [label(generator, token) for token in shown.tolist()]
    draw(panels, labels, shown, options.prompt, options.output)


if __name__ == "__main__":
    main()
