"""docs/session.md shows what the session does now."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def without_figures(page: str) -> str:
    """Another machine may round a probability another way."""
    return re.sub(r"\d+\.\d\d\b", "0.00", page)


def test_the_transcripts_of_the_page_are_those_of_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Filled in again by the script that filled them in."""
    spec = importlib.util.spec_from_file_location("session_transcripts", DOCS / "figures" / "session.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    monkeypatch.syspath_prepend("")  # the script adds the project's own directory, which is taken away again
    spec.loader.exec_module(script)
    page = (DOCS / "session.md").read_text(encoding="utf-8")
    assert page.count("```transcript") > 5
    assert without_figures(script.replayed(page)) == without_figures(page), "run python docs/figures/session.py"
