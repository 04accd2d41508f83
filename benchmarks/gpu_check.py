"""Measure gpt2tg on a CUDA GPU in at most eight minutes: GPU tests, generation, training. One JSON, one markdown table.

    python benchmarks/gpu_check.py                             # with the Python of the machine, nothing to set up
    python benchmarks/gpu_check.py --parts machine tests --output /tmp/results
    python benchmarks/gpu_check.py --small                     # a rehearsal with tiny models, also on a CPU

Each part is a process of its own with a time limit, the most important first. A part that fails or hangs is reported,
keeps what it had measured, and the next one runs. Both files are written again after each part, so that nothing is
lost if the machine is taken away. The table goes to stdout, the progress to stderr. The exit code is 1 if anything
failed.

This file needs the standard library only. What a part needs, it imports itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from agreement import agreement

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = Path(__file__).with_name("gpu_parts.py")

# Seconds for all parts, so that the whole stays below eight minutes.
BUDGET = 460.0

# With less time left, a part is skipped: it would hardly have imported torch.
LEAST = 8.0

LOG_LINES = 4  # of a failed part, in the JSON


@dataclass(frozen=True)
class Part:
    """A process that measures something."""

    name: str
    seconds: float
    """Its time limit."""
    work: str = ""
    """The function of gpu_parts.py, if its name is another one."""
    environment: dict[str, str] = field(default_factory=dict)
    is_reference: bool = False
    """Whether figures of other parts are compared with those of the same work here."""
    program: Path = PROGRAM


PARTS = (
    Part("machine", 60),
    Part("tests", 120),
    Part("generation", 80),
    Part("training", 80),
    Part("plain Trainer", 80, "plain_trainer", is_reference=True),
    Part("transformers", 60, is_reference=True),
    Part("strategies", 50),
    Part("graphs off", 40, "generation_briefly", {"GPT2TG_GRAPHS": "0"}),
    Part("training gpt2-xl", 70, "training_xl"),
    Part("larger models", 60, "larger_models"),
    Part("attention", 30),
    Part("cuDNN attention", 40, "generation_with_cudnn"),
    Part("more training", 90, "more_training"),
    Part("transformers, static cache", 90, "transformers_static"),
    Part("training, compiled", 90, "training_compiled"),
)


def main() -> None:
    """Run the parts, write the files, and end with 1 if anything failed."""
    options = parse()
    options.output.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the running part is ended
    start = time.monotonic()
    told: dict = {"small": options.small, "budget_seconds": options.budget, "parts": []}
    for part in chosen_parts(options.parts):
        told["parts"].append(run(part, start + options.budget, options))
        told["seconds"] = round(time.monotonic() - start, 1)
        write(told, options.output)
        if part.name == "machine" and not options.small and device_of(told) == "cpu":
            raise SystemExit("torch finds no CUDA GPU here. --small rehearses on the CPU.")
    print(table(told))
    report(f"\n{told['seconds']:.0f} s; written to {options.output}: gpu-check.json and gpu-check.md")
    if any(has_failed(part) for part in told["parts"]):
        raise SystemExit(1)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", metavar="NAME", help=f"only these: {', '.join(p.name for p in PARTS)}")
    parser.add_argument("--small", action="store_true", help="tiny models and short texts, on the GPU or the CPU")
    parser.add_argument("--budget", type=float, default=BUDGET, help=f"seconds for all parts (default: {BUDGET:.0f})")
    parser.add_argument("--output", type=Path, default=ROOT / "gpu-check", metavar="DIR", help="(default: gpu-check)")
    return parser.parse_args()


def chosen_parts(names: list[str] | None) -> list[Part]:
    """Return the parts with these names in their order; all if none is named."""
    unknown = set(names or ()) - {part.name for part in PARTS}
    if unknown:
        raise SystemExit(f"--parts: {', '.join(sorted(unknown))}: no such part. --help lists them.")
    return [part for part in PARTS if not names or part.name in names]


# ---- one part ----


def run(part: Part, deadline: float, options: argparse.Namespace) -> dict:
    """Run a part until it ends or its time is up. Returns its outcome and its rows."""
    start = time.monotonic()
    limit = min(part.seconds, deadline - start)
    told: dict = {"name": part.name, "is_reference": part.is_reference, "rows": []}
    if limit < min(LEAST, part.seconds):
        report(f"== {part.name}: skipped, no time left")
        return told | {"outcome": "skipped", "seconds": 0.0, "error": "no time left"}
    report(f"== {part.name}")
    with tempfile.TemporaryDirectory() as place:
        rows, log = Path(place, "rows.jsonl"), Path(place, "log")
        command = [sys.executable, str(part.program), part.work or part.name, str(rows), str(cache(options.small))]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **part.environment}
        with (
            log.open("wb") as output,
            ended(
                subprocess.Popen(
                    command + ["--small"] * options.small,
                    cwd=ROOT,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            ) as process,
        ):
            try:
                code = process.wait(limit)
                outcome, error = ("failed", f"exit code {code}") if code else ("done", "")
            except subprocess.TimeoutExpired:
                outcome, error = "timed out", f"stopped after {limit:.0f} s"
        told["rows"] = read_rows(rows)
        if outcome != "done":
            told["log"] = last_lines(log)
            error = ": ".join([error, *told["log"][-1:]])
    told |= {"outcome": outcome, "seconds": round(time.monotonic() - start, 1), "error": error}
    for row in told["rows"]:
        report(f"   {row['what']}: {figure(row)}  {row['note']}")
    report(f"   {outcome} in {told['seconds']:.0f} s {error}")
    return told


@contextlib.contextmanager
def ended(process: subprocess.Popen) -> Iterator[subprocess.Popen]:
    """End a process, and all that it has started, when the block ends."""
    try:
        yield process
    finally:
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):  # the group is gone already
                os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def cache(is_small: bool) -> Path:
    """Return the folder for the models with random weights that the parts share."""
    place = Path(tempfile.gettempdir()) / "gpt2tg-benchmarks" / ("gpu-check-small" if is_small else "gpu-check")
    place.mkdir(parents=True, exist_ok=True)
    return place


def read_rows(path: Path) -> list[dict]:
    """Return the complete lines of a part that may have been stopped while it wrote one."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def last_lines(log: Path) -> list[str]:
    """Return the end of a log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.strip()[:300] for line in lines if line.strip()][-LOG_LINES:]


def device_of(told: dict) -> str | None:
    """Return the device that the part `machine` has found; None if it has failed."""
    rows = (row for part in told["parts"] for row in part["rows"] if part["name"] == "machine")
    return next((row["device"] for row in rows if "device" in row), None)


def has_failed(part: dict) -> bool:
    """Whether a part, or one of its measurements, has failed."""
    return part["outcome"] in ("failed", "timed out") or any(row["value"] is None for row in part["rows"])


# ---- the files ----


def write(told: dict, directory: Path) -> None:
    """Write both files, each at once: the machine may go away at any time."""
    compare(told["parts"])
    shown = [{**part, "rows": [without_ids(row) for row in part["rows"]]} for part in told["parts"]]
    contents = {
        "gpu-check.json": json.dumps({**told, "parts": shown}, indent=1) + "\n",
        "gpu-check.md": table(told) + "\n",
    }
    for name, content in contents.items():
        unfinished = directory / f"{name}.new"
        unfinished.write_text(content, encoding="utf-8")
        shutil.move(unfinished, directory / name)


def without_ids(row: dict) -> dict:
    """Return a row without its texts, which are too long for the file."""
    return {key: value for key, value in row.items() if key != "ids"}


def compare(parts: list[dict]) -> None:
    """Add to each row how many times as fast it is as the same work in a part that is a reference."""
    references = {
        (row["what"], row["unit"]): row
        for part in parts
        if part["is_reference"]
        for row in part["rows"]
        if row["value"]
    }
    for part in parts:
        for row in part["rows"]:
            other = references.get((row["what"], row["unit"]))
            if part["is_reference"] or not other or not row["value"]:
                continue
            ratio = row["value"] / other["value"]
            row["times_reference"] = ratio if row["unit"].endswith("/s") else 1 / ratio
            if "ids" in row and "ids" in other:
                row["agreement"] = agreement(row["ids"], other["ids"])


def table(told: dict) -> str:
    """Return the markdown table of all parts."""
    head = [f"GPU check, {told['seconds']:.0f} s" + (", a rehearsal with tiny models" if told["small"] else ""), ""]
    lines = ["| part | what | figure | times as fast as transformers | note |", "|---|---|---|---|---|"]
    for part in told["parts"]:
        for row in part["rows"]:
            times = f"{row['times_reference']:.2f}" if "times_reference" in row else ""
            lines.append(line(part["name"], row["what"], figure(row), times, note(row)))
        if part["outcome"] != "done":
            lines.append(line(part["name"], "", part["outcome"], "", part["error"]))
    return "\n".join(head + lines)


def line(*cells: str) -> str:
    """Return a line of the table."""
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def figure(row: dict) -> str:
    """Return value and unit as text."""
    value = row["value"]
    if value is None or isinstance(value, str):
        return value or "failed"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f} {row['unit']}".strip()


def note(row: dict) -> str:
    """Return the note of a row, with the agreement of its texts with those of the reference."""
    if "agreement" not in row:
        return row["note"]
    found = row["agreement"]
    same = f"ids equal {found['equal_texts']} of {found['texts']}"
    if found["first_difference"] is not None:
        same += f", first difference at token {found['first_difference']}"
    return "; ".join(filter(None, (row["note"], same)))


def report(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
