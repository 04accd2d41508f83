"""The curves of a run as a picture. matplotlib is imported when the first one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gpt2tg.training.callbacks import History, best_step, measurements

# The palette of Okabe and Ito (2008), which the colour-blind can tell apart too.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"

COLOURS = (GREEN, BLUE, ORANGE, "#CC79A7", "#E69F00", "#56B4E9", "0.35", "0.65")

# Lines of the log from which on the mean of neighbours is drawn over the single ones.
MANY_LINES = 60


def draw_losses(history: History, path: Path, title: str) -> None:
    """Training and validation loss, and the learning rate below, by step; written whole or not at all.

    Args:
        history: the lines of the log; those without a step taken are drawn at step 0.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    lines = [entry for entry in history if "loss" in entry]
    steps, losses = [entry["step"] for entry in lines], [entry["loss"] for entry in lines]
    figure = Figure(figsize=(8, 5.6), dpi=120)
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    figure.subplots_adjust(left=0.1, right=0.97, bottom=0.1, top=0.93, hspace=0.12)

    smooth = len(lines) >= MANY_LINES
    if lines:
        above.plot(
            steps, losses, color=BLUE, linewidth=1 if smooth else 1.5, alpha=0.3 if smooth else 1,
            marker="." if len(lines) == 1 else None, label=None if smooth else "training",
        )  # fmt: skip
    if smooth:
        above.plot(steps, _running_mean(losses, len(losses) // 40), color=BLUE, label="training (mean of neighbours)")
    measured = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    if measured:
        above.plot(*zip(*measured, strict=True), color=ORANGE, marker="o", markersize=4, label="validation")
    best = best_step(history)
    if best is not None:
        loss = next(loss for loss, step in measurements(history) if step == best)
        above.plot(
            best, loss, color=GREEN, marker="o", markersize=9, fillstyle="none", markeredgewidth=1.8,
            linestyle="none", label=f"lowest, {loss:.3f} at step {best:,}",
        )  # fmt: skip
    above.set_ylabel("loss (nats per token)")
    above.set_title(title, loc="left", fontsize=11, parse_math=False)
    if lines or measured:
        above.legend(frameon=False)

    if lines:
        below.plot(steps, [entry["learning_rate"] for entry in lines], color="0.35", linewidth=1.5)
    below.set_ylabel("learning rate")
    below.set_ylim(bottom=0)
    below.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    below.set_xlabel("step")
    below.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    below.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    for axes in (above, below):
        axes.grid(color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)

    draft = path.with_name(f".{path.name}.tmp")
    figure.savefig(draft, format="png", pil_kwargs={"compress_level": 3})
    draft.replace(path)


def draw_tries(curves: Sequence[tuple[str, bool, Sequence[tuple[float, float]]]], path: Path) -> None:
    """The validation losses of several runs by rounds over the text; written whole or not at all.

    Args:
        curves: the best first; its name, whether the run went to its end, and rounds and loss of each measurement.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, (name, is_finished, points) in enumerate(curves):
        if points:
            axes.plot(
                *zip(*points, strict=True), color=COLOURS[place % len(COLOURS)], marker="o" if is_finished else "x",
                markersize=4, linewidth=2.5 if place == 0 else 1.2, linestyle="-" if is_finished else "--",
                label=name + (" (the best)" if place == 0 else "" if is_finished else " (ended early)"),
            )  # fmt: skip
    axes.set_xlabel("rounds over the text")
    axes.set_ylabel("validation loss (nats per token)")
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    draft = path.with_name(f".{path.name}.tmp")
    figure.savefig(draft, format="png")
    draft.replace(path)


def _running_mean(values: list[float], reach: int) -> list[float]:
    """Each value as the mean of those up to `reach` places away."""
    spans = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(span) / len(span) for span in spans]
