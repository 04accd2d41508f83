"""The transcripts of docs/session.md are up to date."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def without_decimals(page: str) -> str:
    """Return the page without its decimals, which another machine may round differently."""
    return re.sub(r"\d+\.\d\d\b", "0.00", page)


def test_transcripts_are_those_of_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """The script that wrote the answers into the page would write the same again."""
    spec = importlib.util.spec_from_file_location("session_transcripts", DOCS / "figures" / "session.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    monkeypatch.syspath_prepend("")  # restores sys.path, to which the script adds
    spec.loader.exec_module(script)
    page = (DOCS / "session.md").read_text(encoding="utf-8")
    assert page.count("```transcript") > 5
    assert without_decimals(script.replayed(page)) == without_decimals(page), "run python docs/figures/session.py"
