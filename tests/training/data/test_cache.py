"""The token cache: its folder, its limit, and the command that shows and clears it."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest
from data_helpers import load, numbered, rows, write

from gpt2tg import cache
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.errors import RunError, UserError
from gpt2tg.training.data import token_cache
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


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(token_cache, "CACHE", folder)
    monkeypatch.setattr(cache, "default", lambda: folder)
    return folder


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"locks"}


def test_the_least_recently_used_tokens_are_removed(
    tmp_path: Path,
    empty_cache: Path,
    tokenizer: TextTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = [write(tmp_path, numbered(2000, name), f"{name}.txt") for name in ("first", "used", "third", "last")]
    first, used, third = (load(text, tokenizer).train.tokens.directory.name for text in texts[:3])
    for number, name in enumerate((first, used, third)):
        os.utime(empty_cache / name / "manifest.json", (number, number))
    held = load(texts[1], tokenizer)  # it was the second to be made, and is now in use
    expected = rows(held.train)
    size = sum(path.stat().st_size for path in (empty_cache / first).iterdir())
    monkeypatch.setenv("GPT2TG_CACHE_GB", str(2.5 * size / 1e9))
    capsys.readouterr()
    last = load(texts[3], tokenizer).train.tokens.directory.name
    assert names_in(empty_cache) == {used, last}
    assert "of tokens that were not used for the longest time" in capsys.readouterr().err
    monkeypatch.setenv("GPT2TG_CACHE_GB", "0")  # nothing in use is removed, nor what was just made
    assert names_in(empty_cache) == {used, last}
    assert rows(load(texts[0], tokenizer).train) != expected
    assert names_in(empty_cache) == {used, first}
    assert rows(held.train) == expected


def test_a_limit_that_is_no_number_is_refused(
    tmp_path: Path, empty_cache: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPT2TG_CACHE_GB", "much")
    with pytest.raises(UserError, match="GPT2TG_CACHE_GB=much is not a size in GB: set it to a number"):
        load(write(tmp_path, numbered(5)), tokenizer)
    assert cache.main([]) == 2


def test_the_command_shows_and_clears_the_cache(
    tmp_path: Path, empty_cache: Path, tokenizer: TextTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cache.main([]) == 0
    load(write(tmp_path, numbered(5), "owls.txt"), tokenizer)
    in_use = load(write(tmp_path, numbered(6), "foxes.txt"), tokenizer)
    (empty_cache / "unfinished-ab12-xyz").mkdir()
    capsys.readouterr()
    assert cache.main([]) == 0
    shown = capsys.readouterr().out
    assert "of at most 20.00 GB (GPT2TG_CACHE_GB)" in shown
    assert [name in shown for name in ("owls.txt", "foxes.txt", "not complete")] == [True] * 3
    assert cache.main(["--clear"]) == 0
    assert "1 of 3 texts stay: a run is using them" in capsys.readouterr().out
    assert names_in(empty_cache) == {in_use.train.tokens.directory.name}
    del in_use
    assert cache.main(["--clear"]) == 0
    assert names_in(empty_cache) == set()


def test_tokens_stay_where_nothing_can_be_locked(
    tmp_path: Path,
    empty_cache: Path,
    tokenizer: TextTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A run may use them, and nothing would show it."""
    load(write(tmp_path, numbered(5)), tokenizer)
    kept = names_in(empty_cache)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(pytest.importorskip("fcntl", reason="Windows has no flock"), "flock", refuse)
    assert cache.main(["--clear"]) == 0
    assert names_in(empty_cache) == kept
    assert "1 of 1 texts stay: a run is using them, or this folder lets nobody lock" in capsys.readouterr().out


def test_tokens_in_a_read_only_cache_are_used(
    tmp_path: Path, empty_cache: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, numbered(20, "read only"))
    before = rows(load(path, tokenizer).train)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert rows(load(path, tokenizer).train) == before
    with pytest.raises(RunError, match=r"cannot write the tokens to .*Read-only file system; set HF_HOME"):
        load(write(tmp_path, numbered(21, "other")), tokenizer)
