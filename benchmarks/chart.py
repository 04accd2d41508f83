"""Draw the bar chart of docs/benchmarks.md, and fill its tables from the results of the benchmarks.

    python benchmarks/decode.py > benchmarks/results/decode.json
    python benchmarks/chart.py

Tables without a results file stay as they are. The results of several runs may be in several files, decode.json,
decode-medium.json and so on: their tables are merged.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
PICTURE = ROOT / "docs" / "figures" / "benchmarks.png"

PANELS = {
    "greedy-1": "one text, greedy",
    "greedy-8": "8 texts, greedy",
    "greedy-32": "32 texts, greedy",
    "beam-5": "one text, 5 beams",
}
WORKS = {**PANELS, "top_p-1": "one text, top_p 0.9", "prefill": "reading the prompt, tokens read a second"}
OURS, OTHERS, INK, PALE = "#2a7f8e", "#b9c2c9", "#1f2d3a", "#6b7680"


def readable(rival: str) -> str:
    """Return the name of a rival on the page."""
    names = {
        "ctranslate2": "CTranslate2",
        "onnxruntime": "ONNX Runtime",
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
        short = re.sub("-(mkl|onednn)$", "", name)
        if short not in best or _speed(figures) > _speed(best[short]):
            best[short] = figures
    return best


def draw(tables: list[dict], output: Path) -> None:
    """Draw bars of tokens per second for gpt2's shape and the shortest prompt, one panel per kind of work."""
    tables = [table for table in tables if table["shape"] == "gpt2" and table["work"] in PANELS]
    prompt = min(table["prompt"] for table in tables)
    shown = {table["work"]: better_library(table["rivals"]) for table in tables if table["prompt"] == prompt}
    names = list(dict.fromkeys(name for rivals in shown.values() for name in rivals))
    matplotlib.rcParams.update({"font.family": "DejaVu Sans", "font.size": 9})
    figure = Figure(figsize=(2.6 + 2.2 * len(shown), 1.1 + 0.24 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axis, (work, rivals) in zip(axes, shown.items(), strict=True):
        _draw_panel(axis, PANELS[work], [rivals.get(name) for name in names], names)
    axes[0].set_yticks(range(len(names)), [readable(name) for name in names])
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    title = f"Tokens a second, 124M parameters, a prompt of {prompt} tokens, 2 cores"
    title = title.replace("2 cores", f"{tables[0].get('threads', 2)} cores")
    figure.suptitle(title, x=0.008, ha="left", fontsize=12, fontweight="bold", color=INK)
    figure.savefig(output, dpi=180, facecolor="white", metadata={"Software": None})


def _draw_panel(axis: Axes, title: str, figures: list[dict | None], names: list[str]) -> None:
    """Draw a bar per rival, with its spread and its number; none if the rival cannot do the work."""
    axis.set_title(title, loc="left", fontsize=9.5, fontweight="bold", color=INK)
    longest = max(found["tokens_per_second"]["max"] for found in figures if found)
    for row, (name, found) in enumerate(zip(names, figures, strict=True)):
        if not found:
            axis.text(0.02 * longest, row, "no figure", va="center", fontsize=7.5, color=PALE)
            continue
        speed = found["tokens_per_second"]
        axis.barh(row, speed["median"], height=0.7, color=OURS if name.startswith("gpt2tg") else OTHERS)
        axis.hlines(row, speed["min"], speed["max"], INK, lw=0.9)
        axis.text(speed["max"] + 0.02 * longest, row, f"{speed['median']:.0f}", va="center", fontsize=8, color=INK)
    axis.set_xlim(0, 1.18 * longest)
    axis.set_xticks([])
    axis.tick_params(length=0, labelcolor=INK)
    axis.spines[:].set_visible(False)
    axis.spines["left"].set(visible=True, color="#aab2b8")


def decode_tables(told: dict) -> str:
    """Return a table per shape and prompt, a row per rival: tokens per second and the ratio to transformers."""
    groups: dict[tuple[str, int], dict[str, dict]] = {}
    for table in told["results"]:
        if table["work"] != "lookup":
            groups.setdefault((table["shape"], table["prompt"]), {})[table["work"]] = better_library(table["rivals"])
    parts = [machine_line(told)]
    for (shape, prompt), works in groups.items():
        names = dict.fromkeys(name for rivals in works.values() for name in rivals)
        header = [f"{shape}, prompt of {prompt}", *(WORKS[work] for work in works)]
        rows = [[readable(name), *(_cell(rivals.get(name)) for rivals in works.values())] for name in names]
        parts.append(markdown(header, rows))
    lookups = [table for table in told["results"] if table["work"] == "lookup"]
    if lookups:
        rows = [[table["text"], *(_cell(found) for found in table["rivals"].values())] for table in lookups]
        parts.append(markdown(["prompt lookup, gpt2-tiny, greedy", *lookups[0]["rivals"]], rows))
    return "\n\n".join(parts)


def bandwidth_table(told: dict) -> str:
    """Return the bytes of weights read per second by one greedy text, beside the memory bandwidth."""
    roof = told["bandwidth_gb_per_second"]
    tables = [table for table in told["results"] if table["work"] == "greedy-1"]
    shortest = min(table["prompt"] for table in tables)
    rows = [
        [table["shape"], readable(name), f"{found['gb_per_second']:.1f}", f"{found['gb_per_second'] / roof:.0%}"]
        for table in tables
        if table["prompt"] == shortest
        for name, found in better_library(table["rivals"]).items()
    ]
    return markdown(["shape", "", "GB/s of weights", f"of the {roof:.1f} GB/s that memory is read at"], rows)


def ids_table(told: dict) -> str:
    """Return how many texts equal those of transformers, over all greedy and beam work of a shape."""
    counts: dict[tuple[str, str], list[int]] = {}
    for table in told["results"]:
        for name, found in table["rivals"].items():
            if "texts" in found and table["work"] != "lookup":
                counts.setdefault((table["shape"], name), [0, 0])[0] += found["equal_texts"]
                counts[table["shape"], name][1] += found["texts"]
    rows = [[shape, readable(name), f"{equal} of {all_}"] for (shape, name), (equal, all_) in counts.items()]
    return markdown(["shape", "", "texts equal to transformers' in fp32"], rows)


def startup_table(told: dict) -> str:
    """Return the table of whole processes: seconds and peak memory."""
    names = told["results"][0]["rivals"]
    rows = []
    for name in names:
        row = [readable(name)]
        for table in told["results"]:
            seconds = table["rivals"][name]["seconds"]
            row.append(f"{seconds['median']:.2f} s ({seconds['min']:.2f} to {seconds['max']:.2f})")
        rows.append([*row, f"{told['results'][-1]['rivals'][name]['peak_mb']['median']:.0f} MB"])
    new = [f"{table['new_tokens']} token{'s' * (table['new_tokens'] > 1)}" for table in told["results"]]
    return f"{machine_line(told)}\n\n{markdown([told['results'][0]['model'], *new, 'peak memory'], rows)}"


def scaling_table(told: dict) -> str:
    """Return the table of milliseconds per step in each case."""
    names = list(dict.fromkeys(name for case in told["results"] for name in case["rivals"]))
    rows = [
        [case["shape"], str(case["context"]), str(case["rows"])]
        + [f"{case['rivals'][name]['milliseconds']['median']:.1f}" if name in case["rivals"] else "" for name in names]
        for case in told["results"]
    ]
    header = ["shape", "context", "texts", *(f"{readable(name)}, ms a step" for name in names)]
    return f"{machine_line(told)}\n\n{markdown(header, rows)}"


def together(runs: list[dict]) -> dict:
    """Merge the results of several runs."""
    repeats = sorted({told.get("repeats") or told.get("runs") for told in runs})
    versions = {name: version for told in runs for name, version in told["machine"]["versions"].items()}
    return {
        **runs[0],
        "machine": {**runs[0]["machine"], "versions": versions},
        "bandwidth_gb_per_second": max(told.get("bandwidth_gb_per_second", 0) for told in runs),
        "repeats": " to ".join(map(str, dict.fromkeys((repeats[0], repeats[-1])))),
        "results": [table for told in runs for table in told["results"]],
    }


def machine_line(told: dict) -> str:
    """Return a description of the machine."""
    machine = told["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    counted = f" Medians of {told['repeats']} runs in turn." if told["repeats"] != "1" else " One run of each."
    return f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GiB; {versions}.{counted}"


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
    return f"{before}{start}\n\n{content}\n\n{end}{rest.partition(end)[2]}"


def _cell(found: dict | None) -> str:
    if not found:
        return ""
    ratio = f" ({found['times_reference']:.2f})" if "times_reference" in found else ""
    return f"{_speed(found):.1f}{ratio}"


def _speed(found: dict) -> float:
    return found["tokens_per_second"]["median"]


def main() -> None:
    """Read the results, draw the chart, and fill the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the json files")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    makers = {
        "decode": {"decode": decode_tables, "bandwidth": bandwidth_table, "ids": ids_table},
        "startup": {"startup": startup_table},
        "scaling": {"scaling": scaling_table},
    }
    page = options.page.read_text(encoding="utf-8")
    for source, tables in makers.items():
        runs = [
            json.loads(path.read_text(encoding="utf-8")) for path in sorted(options.results.glob(f"{source}*.json"))
        ]
        if not runs:
            continue
        told = together(runs)
        for name, make in tables.items():
            page = fill(page, name, make(told))
        if source == "decode":
            draw([table | {"threads": told["threads"]} for table in told["results"]], options.picture)
    options.page.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
