"""The cache of tokens: when it is reused, rebuilt and cleaned up."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import (
    cut_by_hand,
    encode_by_hand,
    held_out_texts,
    ids_of,
    load,
    numbered,
    rows,
    texts_of,
    write,
)
from filelock import FileLock

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.errors import UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.reading.plain_text import Piece
from gpt2tg.training.data import corpus, token_cache
from gpt2tg.training.data.sources import plan_sources
from gpt2tg.training.data.tokenization import TokenBatch
from gpt2tg.training.data.training_data import load_data
from gpt2tg.training.model.new_tokenizer import train_tokenizer


@pytest.fixture
def tokenized(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were tokenized, one entry each time."""
    seen: list[Path] = []
    original = corpus.Corpus.pieces

    def counted(self: corpus.Corpus) -> Iterator[Piece]:
        seen.extend(self.files)
        return original(self)

    monkeypatch.setattr(corpus.Corpus, "pieces", counted)
    return seen


def test_split_and_block_size_do_not_retokenize(
    tmp_path: Path, tokenizer: TextTokenizer, tokenized: list[Path]
) -> None:
    path = write(tmp_path, numbered(20, "once,"))
    first = load(path, tokenizer)
    assert tokenized == [path]
    for settings in ({}, {"validation_split": 0.25}, {"seed": 3}, {"block_size": 9}, {"no_cross_examples": True}):
        load(path, tokenizer, **settings)
    assert tokenized == [path]
    assert rows(load(path, tokenizer).train) == rows(first.train)


def test_renamed_file_is_not_retokenized(tmp_path: Path, tokenizer: TextTokenizer, tokenized: list[Path]) -> None:
    lines = numbered(20, "moved")
    load(write(tmp_path, lines), tokenizer)
    moved = load(write(tmp_path, lines, "other.txt"), tokenizer)
    assert tokenized == [tmp_path / "train.txt"]
    assert texts_of(moved.train, tokenizer) == lines


def test_changed_text_of_equal_size_and_time_is_retokenized(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    path = write(tmp_path, numbered(20, "before"))
    load(path, tokenizer)
    before = path.stat()
    write(tmp_path, numbered(20, "behind"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert texts_of(load(path, tokenizer).train, tokenizer) == numbered(20, "behind")


def test_another_block_size_repacks(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    path = write(tmp_path, numbered(20))
    load(path, tokenizer, block_size=8)
    expected = cut_by_hand(encode_by_hand(numbered(20), tokenizer), 16)
    assert rows(load(path, tokenizer, block_size=16).train) == expected


def test_another_example_mode_repacks(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    path = write(tmp_path, ["one", "two"])
    load(path, tokenizer, examples="line")
    assert texts_of(load(path, tokenizer, examples="paragraph").train, tokenizer) == ["one\ntwo"]


def test_another_seed_repacks(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    path = write(tmp_path, numbered(200))
    load(path, tokenizer, validation_split=0.05, seed=7)
    loaded = load(path, tokenizer, validation_split=0.05, seed=8)
    assert texts_of(loaded.validation, tokenizer) == held_out_texts(path, seed=8)


def test_another_tokenizer_repacks(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    path = write(tmp_path, numbered(20))
    load(path, tokenizer)
    source, _ = plan_sources(TrainingOptions(train_file=str(path), validation_split=0))
    other = train_tokenizer(source, 270)
    expected = encode_by_hand(numbered(20), other)
    assert expected != encode_by_hand(numbered(20), tokenizer)
    assert ids_of(load(path, other).train) == expected


def test_another_end_of_text_token_repacks(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    path = write(tmp_path, numbered(20))
    load(path, tokenizer)
    other = TextTokenizer(tokenizer.raw, end_id=5)
    assert ids_of(load(path, other).train) == encode_by_hand(numbered(20), other)


def test_interrupted_run_leaves_no_partial_tokens(
    tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, numbered(20, "interrupted"))

    def interrupted(pieces: Iterator[Piece], text_bytes: int, tokenizer: TextTokenizer) -> Iterator[TokenBatch]:
        yield TokenBatch(np.array([1] * 100, np.uint16), [40, 60], [True, True], [True, True])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(token_cache, "encode_pieces", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(path, tokenizer, block_size=8)
    assert texts_of(load(path, tokenizer, block_size=8).train, tokenizer) == numbered(20, "interrupted")


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 4 * 2])


def fill_with_zeros(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("harm", [cut_in_half, fill_with_zeros, flip_a_bit, Path.unlink])
@pytest.mark.parametrize("name", ["tokens-train.arrow", "dataset_info.json"])
def test_damaged_cache_is_rebuilt(
    tmp_path: Path,
    tokenizer: TextTokenizer,
    capsys: pytest.CaptureFixture[str],
    harm: Callable[[Path], None],
    name: str,
) -> None:
    """A crash may leave files truncated or full of zeros, and a disk may flip a bit."""
    rows_of_table = [{"prompt": f"{harm} {name}", "completion": f" {n} owls."} for n in range(50)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of_table))
    before = load(tmp_path / "t.jsonl", tokenizer, block_size=16)
    expected = [{key: value.tolist() for key, value in row.items()} for row in before.train]
    capsys.readouterr()
    harm(before.train.tokens.directory / name)
    after = load(tmp_path / "t.jsonl", tokenizer, block_size=16)
    assert [{key: value.tolist() for key, value in row.items()} for row in after.train] == expected
    assert f"are damaged, {name if harm != Path.unlink else 'it lacks ' + name}" in capsys.readouterr().err
    assert after.fingerprints == before.fingerprints


def test_cache_of_an_earlier_version_is_rebuilt(
    tmp_path: Path, tokenizer: TextTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Earlier versions wrote other files, at first without checksums."""
    path = write(tmp_path, numbered(30, "earlier"))
    before = load(path, tokenizer)
    folder = before.train.tokens.directory
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "ids.bin").write_bytes(bytes(100))
    capsys.readouterr()
    after = load(path, tokenizer)
    assert capsys.readouterr().err == ""
    assert not (folder / "ids.bin").exists()
    assert texts_of(after.train, tokenizer) == numbered(30, "earlier")
    assert after.fingerprints == before.fingerprints  # a run that was started with them can be resumed


def test_tokens_are_synced_before_they_are_renamed(
    tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[int | str] = []
    sync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda file: (happened.append(os.fstat(file).st_ino), sync(file)))
    monkeypatch.setattr(Path, "rename", lambda self, target: (happened.append("named"), rename(self, target))[1])
    folder = load(write(tmp_path, numbered(9, "synced")), tokenizer).train.tokens.directory
    named = happened.index("named")
    for path in (folder, *folder.iterdir()):
        assert path.stat().st_ino in happened[:named]
    assert folder.parent.stat().st_ino in happened[named:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_text("omega\n" * 20), "changed while it was read"),
        (lambda path: path.write_text("alpha\n" * 21), "changed while it was read"),
        (lambda path: path.write_text("alpha\n" * 19), "changed while it was read"),
        (lambda path: path.write_bytes(b"\xff\xfe" * 20), "changed while it was read"),
        (lambda path: path.write_bytes(b"\0" * 20), "changed while it was read"),
        (Path.unlink, "cannot be read a second time: No such file"),
    ],
    ids=["other words", "longer", "shorter", "no text", "zeros", "gone"],
)
def test_text_that_changes_between_reads_is_refused(
    tmp_path: Path, tokenizer: TextTokenizer, change: Callable[[Path], object], message: str
) -> None:
    """Text is read twice. The second read must not be cached under the digest of the first."""
    lines = [f"alpha {tmp_path.name}", *["alpha"] * 19]
    path = write(tmp_path, lines)
    options = TrainingOptions(train_file=str(path), validation_split=0)
    sources = plan_sources(options)
    change(path)
    for read_again in (lambda: load_data(sources, tokenizer, options), lambda: train_tokenizer(sources[0], 270)):
        with pytest.raises(UserError, match=message) as refusal:
            read_again()
        assert refusal.value.option == "train_file"
        assert str(path) in str(refusal.value)
    write(tmp_path, lines)
    assert texts_of(load(path, tokenizer).train, tokenizer) == lines


def test_leftovers_of_killed_runs_are_removed(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    """Drafts of a run that still holds its lock stay."""
    left, older, at_work = (token_cache.CACHE / f"unfinished-{name}" for name in ("ab12-xyz", "q8w_3k", "cd34-uvw"))
    for folder in (left, older, at_work):
        (folder / "whole").mkdir(parents=True)
        (folder / "whole" / "tokens-train.arrow").write_bytes(bytes(100))
    (token_cache.CACHE / "locks").mkdir(exist_ok=True)
    with FileLock(token_cache.CACHE / "locks" / "cd34"):
        load(write(tmp_path, numbered(5, "left over")), tokenizer)
        assert sorted(token_cache.CACHE.glob("unfinished-*")) == [at_work]
    load(write(tmp_path, numbered(5, "left over")), tokenizer)
    assert not list(token_cache.CACHE.glob("unfinished-*"))


def test_two_runs_at_once_tokenize_a_text_once(
    tmp_path: Path, tokenizer: TextTokenizer, tokenized: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, is_waiting = write(tmp_path, numbered(20, "at once")), threading.Event()
    monkeypatch.setattr(token_cache.log, "info", lambda text: is_waiting.set())
    made = token_cache.encode_pieces

    def waited_for(*given: Any) -> Iterator[TokenBatch]:
        assert is_waiting.wait(20)
        return made(*given)

    monkeypatch.setattr(token_cache, "encode_pieces", waited_for)
    with ThreadPoolExecutor(2) as runs:
        for found in [runs.submit(load, path, tokenizer) for _ in range(2)]:
            assert texts_of(found.result().train, tokenizer) == numbered(20, "at once")
    assert tokenized == [path]
