"""docs/cli.md is generated from the parsers, and up to date."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

from gpt2tg.cli.reference import SCRIPTS, reference

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "cli.md"


def test_page_is_up_to_date() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "gpt2tg.cli.reference"], cwd=ROOT, capture_output=True, check=True
    ).stdout.decode("utf-8")
    assert PAGE.read_text(encoding="utf-8") == found, "run python -m gpt2tg.cli.reference > docs/cli.md"


def test_page_has_every_flag_of_every_script() -> None:
    sections = reference().split("\n## ")[1:]
    assert [section.split("\n")[0] for section in sections] == [f"{name}.py" for name in SCRIPTS]
    for name, section in zip(SCRIPTS, sections, strict=True):
        flags = importlib.import_module(name).parser().flags()
        for flag in flags:
            rows = [line for line in section.splitlines() if line.startswith(f"| `{flag.name}` |")]
            assert rows, flag.name
            assert all(row.replace("\\|", "").count("|") == 5 for row in rows)


def test_documentation_links_the_page() -> None:
    assert "(cli.md)" in (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
