"""Plot the losses of a run, and of the runs of a search. matplotlib is imported when the first plot is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2tg.training.log_history import History, best_step, evaluations
from gpt2tg.training.output.durable import replacement

if TYPE_CHECKING:  # it takes most of a second to import
    from matplotlib.axes import Axes

# The palette of Okabe and Ito (2008), which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"

COLOURS = (GREEN, BLUE, ORANGE, "#CC79A7", "#E69F00", "#56B4E9", "0.35", "0.65")

# From this many log entries on, the mean of neighbours is drawn over the single losses.
MANY_ENTRIES = 60


@dataclass(frozen=True)
class LossCurve:
    """The evaluations of one run of a search."""

    name: str
    is_finished: bool  # rather than pruned or diverged
    points: Sequence[tuple[float, float]]  # epochs and validation loss


def draw_losses(history: History, path: Path, title: str) -> None:
    """Plot training and validation loss by step, with the learning rate below, and replace `path` atomically."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    logged = [entry for entry in history if "loss" in entry]
    figure = Figure(figsize=(8, 5.6), dpi=120)
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    figure.subplots_adjust(left=0.1, right=0.97, bottom=0.1, top=0.93, hspace=0.12)
    _plot_training_loss(above, logged)
    has_validation = _plot_validation_loss(above, history)
    above.set_ylabel("loss (nats per token)")
    above.set_title(title, loc="left", fontsize=11, parse_math=False)
    if logged or has_validation:
        above.legend(frameon=False)
    _plot_learning_rate(below, logged)
    for axes in (above, below):
        _style(axes)
    with replacement(path) as draft:
        figure.savefig(draft, format="png", pil_kwargs={"compress_level": 3})


def _plot_training_loss(axes: Axes, logged: History) -> None:
    if not logged:
        return
    steps, losses = [entry["step"] for entry in logged], [entry["loss"] for entry in logged]
    if len(logged) < MANY_ENTRIES:
        marker = "." if len(logged) == 1 else None
        axes.plot(steps, losses, color=BLUE, linewidth=1.5, marker=marker, label="training")
        return
    axes.plot(steps, losses, color=BLUE, linewidth=1, alpha=0.3)
    mean = _running_mean(losses, len(losses) // 40)
    axes.plot(steps, mean, color=BLUE, label="training (mean of neighbours)")


def _plot_validation_loss(axes: Axes, history: History) -> bool:
    """Plot the validation loss and mark the lowest. Returns whether there was any."""
    measured = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    if measured:
        axes.plot(*zip(*measured, strict=True), color=ORANGE, marker="o", markersize=4, label="validation")
    best = best_step(history)
    if best is not None:
        loss = next(loss for loss, step in evaluations(history) if step == best)
        axes.plot(
            best, loss, color=GREEN, marker="o", markersize=9, fillstyle="none", markeredgewidth=1.8,
            linestyle="none", label=f"lowest, {loss:.3f} at step {best:,}",
        )  # fmt: skip
    return bool(measured)


def _plot_learning_rate(axes: Axes, logged: History) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    if logged:
        steps, rates = [entry["step"] for entry in logged], [entry["learning_rate"] for entry in logged]
        axes.plot(steps, rates, color="0.35", linewidth=1.5)
    axes.set_ylabel("learning rate")
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def draw_tries(curves: Sequence[LossCurve], path: Path) -> None:
    """Plot the validation losses of several runs by epoch, the best run first, and replace `path` atomically."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for rank, curve in enumerate(curves):
        if curve.points:
            axes.plot(
                *zip(*curve.points, strict=True), color=COLOURS[rank % len(COLOURS)],
                marker="o" if curve.is_finished else "x", markersize=4, linewidth=2.5 if rank == 0 else 1.2,
                linestyle="-" if curve.is_finished else "--",
                label=curve.name + (" (the best)" if rank == 0 else "" if curve.is_finished else " (ended early)"),
            )  # fmt: skip
    axes.set_xlabel("epochs")
    axes.set_ylabel("validation loss (nats per token)")
    _style(axes)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    with replacement(path) as draft:
        figure.savefig(draft, format="png")


def _style(axes: Axes) -> None:
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _running_mean(values: list[float], reach: int) -> list[float]:
    """Return each value as the mean of itself and up to `reach` values on either side."""
    spans = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(span) / len(span) for span in spans]
