"""Files are replaced completely, or stay as they were."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from gpt2tg.io import atomic
from gpt2tg.io.atomic import draft_beside, replacing, sync


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("old", [None, "old"])
def test_draft_takes_the_place_of_the_file(tmp_path: Path, old: str | None) -> None:
    target = tmp_path / "story.txt"
    if old is not None:
        target.write_text(old)
    with replacing(target) as draft:
        draft.write_text("new")
        assert draft.parent == tmp_path
        assert target.exists() is (old is not None)
    assert target.read_text() == "new"
    assert names(tmp_path) == ["story.txt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_error_leaves_the_file_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "story.txt"
    target.write_text("old")

    def fail() -> None:
        with replacing(target) as draft:
            draft.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["story.txt"]


def test_draft_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, bool]] = []
    monkeypatch.setattr(atomic, "sync", lambda path: synced.append((path.name, (tmp_path / "a").exists())))
    with replacing(tmp_path / "a", tmp_path / "a.tmp") as draft:
        draft.write_text("x")
    assert synced == [("a.tmp", False)]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize("keep", [True, False])
def test_mode_is_kept_if_asked(tmp_path: Path, keep: bool) -> None:
    target = tmp_path / "story.txt"
    target.write_text("old")
    target.chmod(0o640)
    with replacing(target, keep_attributes=keep) as draft:
        draft.touch(0o600)
    assert stat.S_IMODE(target.stat().st_mode) == (0o640 if keep else 0o600)


def test_drafts_have_names_of_their_own(tmp_path: Path) -> None:
    target = tmp_path / ("x" * 250)
    assert draft_beside(target) != draft_beside(target)
    assert len(draft_beside(target).name) < 20


@pytest.mark.skipif(os.name == "nt", reason="Windows syncs no folders")
def test_folder_that_cannot_be_synced_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, passes in ((22, True), (5, False)):  # EINVAL of network mounts, EIO of a broken disk

        def refuse(_: int, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", refuse)
        if passes:
            sync(tmp_path)
        else:
            with pytest.raises(OSError, match=os.strerror(number)):
                sync(tmp_path)
