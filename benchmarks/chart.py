"""Draw the two charts of docs/benchmarks.md, and fill its tables from the results of the benchmarks.

    python benchmarks/decode.py
    python benchmarks/chart.py

Each benchmark writes a file of its own. What has no file yet stays as it is on the page.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import results
import roof
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
PICTURE = ROOT / "docs" / "figures" / "benchmarks.png"
ROOF_PICTURE = ROOT / "docs" / "figures" / "share-of-roof.png"

WORKS = {
    "greedy-1": "one text, greedy",
    "top_p-1": "one text, top_p 0.9",
    "beam-5": "one text, 5 beams",
    "greedy-8": "8 texts, greedy",
    "greedy-32": "32 texts, greedy",
    "prefill": "prefill",
}
SPEED_PANELS = ("greedy-1", "greedy-8", "greedy-32", "beam-5")
ROOF_PANELS = ("greedy-1", "greedy-8", "greedy-32", "prefill")
UNKNOWN = "not measured"
OURS, OTHERS, INK, PALE = "#2a7f8e", "#b9c2c9", "#1f2d3a", "#6b7680"


def readable(rival: str) -> str:
    """Return the name of a rival on the page."""
    names = {
        "ctranslate2": "CTranslate2",
        "onnxruntime": "ONNX Runtime",
        "openvino": "OpenVINO",
        "genai": "GenAI",
        "mkl": "(MKL)",
        "onednn": "(oneDNN)",
        "eager": "",
        "static": "static cache, compiled",
    }
    return " ".join(names.get(part, part) for part in rival.split("-")).strip()


def better_library(rivals: dict[str, dict]) -> dict[str, dict]:
    """Keep CTranslate2 once per precision, with the matrix library that is faster here."""
    best: dict[str, dict] = {}
    for name, figures in rivals.items():
        short = without_library(name)
        if short not in best or _speed(figures) > _speed(best[short]):
            best[short] = figures
    return best


def without_library(name: str) -> str:
    """Return the name of a rival without its matrix library."""
    return re.sub("-(mkl|onednn)$", "", name)


@dataclass(frozen=True)
class Bar:
    """One bar with its spread, or the reason why there is none."""

    length: float = 0.0
    least: float = 0.0
    most: float = 0.0
    label: str = ""
    reason: str = ""


def speed_bars(told: dict) -> dict[str, dict[str, Bar]]:
    """Return the tokens per second of gpt2's shape and the shortest prompt, by panel and rival."""
    panels = {}
    for work, table in _shortest(told, SPEED_PANELS).items():
        rivals = better_library(table["rivals"])
        panels[WORKS[work]] = {
            name: Bar(speed["median"], speed["min"], speed["max"], f"{speed['median']:.0f}")
            for name, speed in ((name, found["tokens_per_second"]) for name, found in rivals.items())
        } | _reasons(table)
    return panels


def roof_bars(told: dict) -> dict[str, dict[str, Bar]]:
    """Return the share of the roof that each rival reaches with gpt2's shape, by panel and rival, in percent."""
    panels = {}
    for work, table in _shortest(told, ROOF_PANELS).items():
        bars = {}
        for name, found in better_library(table["rivals"]).items():
            rival = next(told["rivals"][long] for long in told["rivals"] if without_library(long) == name)
            if rival["products"] in told["gflops"]:
                speeds = (found["tokens_per_second"][key] for key in ("median", "min", "max"))
                shares = [100 * roof.share(table, rival, told, speed) for speed in speeds]
                bars[name] = Bar(*shares, f"{shares[0]:.0f} %")
        panels[WORKS[work]] = bars | _reasons(table)
    return panels


def _reasons(table: dict) -> dict[str, Bar]:
    """Return the bars of rivals that have no figure."""
    return {without_library(name): Bar(reason=why) for name, why in table.get("reasons", {}).items()}


def _shortest(told: dict, works: Iterable[str]) -> dict[str, dict]:
    """Return the table of each work with gpt2's shape and the shortest prompt."""
    found = {}
    for work in works:
        tables = [table for table in told["results"] if table["shape"] == "gpt2" and table["work"] == work]
        if tables:
            found[work] = min(tables, key=lambda table: table["prompt"])
    return found


def draw(
    panels: dict[str, dict[str, Bar]], title: str, names: list[str], output: Path, longest: float | None = None
) -> None:
    """Draw one panel beside the other, with a bar for each rival.

    Args:
        longest: the width of every panel in the bars' unit; without it, a panel is as wide as its longest bar.
    """
    matplotlib.rcParams.update({"font.family": "DejaVu Sans", "font.size": 9})
    figure = Figure(figsize=(2.6 + 2.2 * len(panels), 1.1 + 0.24 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (heading, bars) in zip(axes, panels.items(), strict=True):
        shown = [bars.get(name, Bar(reason=UNKNOWN)) for name in names]
        _draw_panel(axis, heading, shown, names, longest or max(bar.most for bar in shown) or 1)
    axes[0].set_yticks(range(len(names)), [readable(name) for name in names])
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    figure.suptitle(title, x=0.008, ha="left", fontsize=12, fontweight="bold", color=INK)
    figure.savefig(output, dpi=180, facecolor="white", metadata={"Software": None})


def _draw_panel(axis: Axes, title: str, bars: list[Bar], names: list[str], longest: float) -> None:
    """Draw a bar per rival, with its spread and its number, or the reason why it has none."""
    axis.set_title(title, loc="left", fontsize=9.5, fontweight="bold", color=INK)
    for row, (name, bar) in enumerate(zip(names, bars, strict=True)):
        if bar.reason:
            axis.text(0.02 * longest, row, bar.reason, va="center", fontsize=7.5, color=PALE)
            continue
        axis.barh(row, bar.length, height=0.7, color=OURS if name.startswith("gpt2tg") else OTHERS)
        axis.hlines(row, bar.least, bar.most, INK, lw=0.9)
        axis.text(bar.most + 0.02 * longest, row, bar.label, va="center", fontsize=8, color=INK)
    axis.set_xlim(0, 1.22 * longest)
    axis.set_xticks([])
    axis.tick_params(length=0, labelcolor=INK)
    axis.spines[:].set_visible(False)
    axis.spines["left"].set(visible=True, color="#aab2b8")


def names_of(told: dict) -> list[str]:
    """Return the rivals in the order of the tables, each once."""
    return list(dict.fromkeys(without_library(name) for name in told["rivals"]))


def decode_tables(told: dict) -> str:
    """Return a table per shape, a row per rival: tokens per second and the ratio to transformers."""
    parts = [f"{machine_line(told)}\n{', '.join(f'{k} {v}' for k, v in told['machine']['versions'].items())}."]
    for shape in dict.fromkeys(table["shape"] for table in told["results"] if table["work"] != "lookup"):
        tables = [table for table in told["results"] if table["shape"] == shape and table["work"] in WORKS]
        tables.sort(key=lambda table: (table["prompt"], list(WORKS).index(table["work"])))
        header = [shape, *(f"{table['prompt']}: {WORKS[table['work']]}" for table in tables), "equal texts"]
        rows = [
            [readable(name), *(_cell(table, name) for table in tables), equal_texts(told, shape, name)]
            for name in names_of(told)
        ]
        parts.append(markdown(header, rows))
    lookups = [table for table in told["results"] if table["work"] == "lookup"]
    if lookups:
        rows = [[table["text"], *(_speed_cell(found) for found in table["rivals"].values())] for table in lookups]
        parts.append(markdown(["prompt lookup, gpt2-tiny, greedy", *lookups[0]["rivals"]], rows))
    return "\n\n".join(parts)


def equal_texts(told: dict, shape: str, name: str) -> str:
    """Return how many texts of a rival equal those of transformers, over all greedy and beam work of a shape."""
    tables = [table["rivals"] for table in told["results"] if table["shape"] == shape and table["work"] in WORKS]
    found = [better_library(rivals).get(name, {}) for rivals in tables]
    equal, texts = (sum(figures.get(key, 0) for figures in found) for key in ("equal_texts", "texts"))
    return f"{equal} of {texts}" if texts else UNKNOWN


def company_table(told: dict) -> str:
    """Return the tokens per second in quiet and beside a busy program, and what stays: a column per rival."""
    header = [f"quiet → beside it, {told['results'][0]['shape']}", *(readable(name) for name in told["rivals"])]
    rows = [
        [WORKS[table["work"]], *(_company_cell(table, name) for name in told["rivals"])] for table in told["results"]
    ]
    return f"{machine_line(told)}\n\n{markdown(header, rows)}"


def _company_cell(table: dict, name: str) -> str:
    if found := table["rivals"].get(name):
        quiet, beside = _speed(found), found["with_company"]["median"]
        return f"{quiet:.1f} → {beside:.1f} ({beside / quiet:.0%})"
    return table["reasons"].get(name, UNKNOWN)


def startup_table(told: dict) -> str:
    """Return the table of whole processes: seconds to the first token and to the end, and peak memory."""
    rows = []
    for name, found in told["results"].items():
        first = found["first"]
        seconds = f"{first['median']:.2f} s ({first['min']:.2f} to {first['max']:.2f})"
        rows.append(
            [readable(name), seconds, f"{found['whole']['median']:.2f} s", f"{found['peak_mb']['median']:.0f} MB"]
        )
    header = [told["run"]["model"], "first token", f"{told['run']['new_tokens']} tokens and exit", "peak memory"]
    return f"{machine_line(told)}\n\n{markdown(header, rows)}"


def scaling_table(told: dict) -> str:
    """Return the table of milliseconds per step: a row per rival, a column per case."""
    names = list(dict.fromkeys(name for case in told["results"] for name in case["rivals"]))
    rows = [
        [readable(name)]
        + [
            f"{case['rivals'][name]['milliseconds']['median']:.1f}" if name in case["rivals"] else UNKNOWN
            for case in told["results"]
        ]
        for name in names
    ]
    header = ["ms a step", *(f"{case['shape']}: {case['context']}, {case['rows']}" for case in told["results"])]
    return f"{machine_line(told)}\n\n{markdown(header, rows)}"


def serve_table(told: dict) -> str:
    """Return the table of servers under load, and below it what they did with their memory in a long run."""
    servers = list(told["run"]["servers"])
    header = ["clients", *(f"{server}: {what}" for server in servers for what in ("tokens/s", "first token, p95"))]
    rows = []
    for clients in dict.fromkeys(row["clients"] for row in told["results"]):
        found = {row["server"]: row for row in told["results"] if row["clients"] == clients}
        cells = [
            (f"{found[name]['tokens_per_second']:,.0f}", f"{found[name]['first_p95']:.3f} s")
            if name in found
            else (UNKNOWN, UNKNOWN)
            for name in servers
        ]
        rows.append([str(clients), *(cell for pair in cells for cell in pair)])
    parts = [machine_line(told), markdown(header, rows)]
    for server, points in told.get("memory", {}).items():
        first, middle, last = (points[place] for place in (0, len(points) // 2, -1))
        parts.append(
            f"{server} had {first['megabytes']:.0f} MB after {first['requests']:,} requests, {middle['megabytes']:.0f} "
            f"MB after {middle['requests']:,}\nand {last['megabytes']:.0f} MB after {last['requests']:,}, "
            f"{last['seconds'] / 60:.0f} minutes later."
        )
    return "\n\n".join(parts)


def machine_line(told: dict) -> str:
    """Return a description of the machine and of the run."""
    machine = told["machine"]
    repeats = told.get("repeats") or told["run"]["repeats"]
    counted = f" Medians of {repeats} runs in turn." if str(repeats) != "1" else " One run of each."
    others = told.get("most_computed_by_others", 0)
    disturbed = f" Other programs computed at most {others:.0%} of a core." if others >= 0.05 else ""
    return f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GiB.{counted}{disturbed}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fill(page: str, name: str, content: str) -> str:
    """Replace the text between the two marks of this name."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if page.count(start) != 1 or page.count(end) != 1:
        raise SystemExit(f"{PAGE} has no place for {name}: it wants {start} and {end}")
    before, _, rest = page.partition(start)
    return f"{before}{start}\n{content}\n{end}{rest.partition(end)[2]}"


def _cell(table: dict, name: str) -> str:
    """Return the figures of a rival, or the reason why there are none."""
    if found := better_library(table["rivals"]).get(name):
        return _speed_cell(found)
    reasons = {without_library(rival): why for rival, why in table.get("reasons", {}).items()}
    return reasons.get(name, UNKNOWN).replace("|", "/")


def _speed_cell(found: dict) -> str:
    ratio = f" ({found['times_reference']:.2f})" if "times_reference" in found else ""
    return f"{_speed(found):.1f}{ratio}"


def _speed(found: dict) -> float:
    return found["tokens_per_second"]["median"]


MAKERS = {
    "decode": {"decode": decode_tables},
    "decode-company": {"company": company_table},
    "serve": {"serve": serve_table},
    "startup": {"startup": startup_table},
    "scaling": {"scaling": scaling_table},
}
"""The tables of each file of results."""


def main() -> None:
    """Read the results, draw the charts, and fill the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=results.FOLDER, help="folder of the json files")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--roof_picture", type=Path, default=ROOF_PICTURE)
    options = parser.parse_args()
    page = options.page.read_text(encoding="utf-8")
    for source, tables in MAKERS.items():
        path = options.results / f"{source}.json"
        if not path.exists():
            continue
        told = json.loads(path.read_text(encoding="utf-8"))
        for name, make in tables.items():
            page = fill(page, name, make(told))
        if source == "decode":
            cores = f"124M parameters, {told['run']['threads']} cores"
            draw(speed_bars(told), f"Tokens a second, {cores}", names_of(told), options.picture)
            title = f"Share of what memory and arithmetic allow, {cores}"
            draw(roof_bars(told), title, names_of(told), options.roof_picture, longest=100)
    options.page.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
