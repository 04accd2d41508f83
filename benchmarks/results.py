"""The files of results: one per benchmark, in benchmarks/results, named after what it holds."""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "results"


def save(told: dict, path: Path) -> None:
    """Write results, so that an interrupted write leaves the earlier ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    new.replace(path)


def begin(path: Path, told: dict, overwrite: bool) -> dict:
    """Return the results to go on from: those in the file if they are of the same run, else these, which have none yet.

    Args:
        path: the file of results.
        told: what describes the run, and no results.
        overwrite: drop what the file holds.

    Raises:
        SystemExit: the file holds another run.
    """
    fresh = {**told, "results": []}
    if overwrite or not path.exists():
        return fresh
    before = json.loads(path.read_text(encoding="utf-8"))
    for what, key in (("with other settings", "run"), ("of another machine, or with other versions", "machine")):
        if before.get(key) != told.get(key):
            raise SystemExit(f"{path} holds a run {what}: use --overwrite, or another file with --output")
    return before
