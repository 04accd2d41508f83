"""The outcome of tuning in words: a table for the terminal, and a verdict."""

from __future__ import annotations

from gpt2tg.io.tables import aligned
from gpt2tg.tuning.held_out import CheckedSettings, HeldOutCheck
from gpt2tg.tuning.search_space import OFF, SEARCHED, SearchedSettings

HEADINGS = ("", *SEARCHED, "distance", "std over seeds")


def verdict(check: HeldOutCheck) -> str:
    """Return in a sentence or two whether the tuned settings are better than the default ones."""
    low, high = check.interval
    where = f"on {len(check.comparison.prompts)} held-out prompts and {len(check.tuned.distances)} new seeds"
    if SearchedSettings.of(check.tuned.options) == SearchedSettings.of(check.default.options):
        return "No gain: of all settings that were tried, the default ones are closest to human text."
    closer = f"closer to human text than the default ones by {_with_interval(check.gain, low, high)}, {where}"
    farther = f"farther from human text than the default ones by {_with_interval(-check.gain, -high, -low)}, {where}"
    if check.is_clear:
        return f"The tuned settings are {closer}."
    if high < 0:
        return f"A loss: the tuned settings are {farther}. Keep the default ones, or search with a longer reference."
    more = "A longer reference or more --budget may show a gain."
    if check.gain <= 0:
        return f"No gain: the tuned settings are {farther}, which may be chance. {more}"
    return f"No clear gain: the tuned settings are {closer}, which may be chance. {more}"


def _with_interval(gain: float, low: float, high: float) -> str:
    gain, low, high = (round(value, 2) + 0.0 for value in (gain, low, high))  # + 0.0 turns -0.0 into 0.0
    return f"{gain:.2f} (95 % interval {low:.2f} to {high:.2f})"


def summary(check: HeldOutCheck) -> str:
    """Return the table of both settings for a terminal, and the verdict."""
    rows = [[*HEADINGS], settings_row(check.default), settings_row(check.tuned)]
    rows.append(["human text", *[""] * len(SEARCHED), f"{check.human_distance:.2f}", ""])
    return "\n".join([*aligned(rows, left={0}), "", verdict(check)]) + "\n"


def settings_row(checked: CheckedSettings) -> list[str]:
    """Return a row of the table: name, settings, mean distance, and its standard deviation over the seeds."""
    values = SearchedSettings.of(checked.options).as_dict()
    shown = ["off" if values[name] == OFF[name] and name != "temperature" else f"{values[name]:g}" for name in SEARCHED]
    return [checked.name, *shown, f"{checked.mean:.2f}", f"± {checked.deviation:.2f}"]
