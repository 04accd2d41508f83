"""The folder of the token cache."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from gpt2tg.training.data.cache_directory import writable


def test_token_cache_is_in_a_writable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Container images have models in a read-only folder; a home may be read-only too."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert writable(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert writable(tmp_path / "file" / "b") == tmp_path / "home" / "gpt2tg" / "tokens"
    assert writable(Path("/proc/tokens")) == tmp_path / "home" / "gpt2tg" / "tokens"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    found = writable(tmp_path / "file" / "b")
    assert found.is_relative_to(tmp_path / "temporary")
    found.parent.mkdir()
    found.parent.chmod(0o777)  # other users could put tokens there
    assert writable(tmp_path / "file" / "b") == tmp_path / "file" / "b"
