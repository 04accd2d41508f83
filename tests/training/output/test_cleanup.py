"""Foreign files in an output directory are never deleted, even by a run that is killed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from test_run_directory import draft, names, run_of

from gpt2tg.training.output import durable
from gpt2tg.training.output.cleanup import remove_earlier_runs, remove_unfinished
from gpt2tg.training.output.durable import UNFINISHED
from gpt2tg.training.output.run_directory import RunDirectory


def put(path: Path, text: str = "mine") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def files(directory: Path) -> set[Path]:
    return {path for path in directory.rglob("*") if path.is_file()}


def test_overwrite_keeps_files_not_in_a_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_of(tmp_path, 1, 2).publish(2)
    others = ("checkpoint-1/thesis.txt", "checkpoint-2/notes/a.txt", "vocab.json", "adapter/merges.txt", "tries/x/b")
    mine = {put(tmp_path / name) for name in others}
    remove_earlier_runs(tmp_path)
    assert files(tmp_path) == mine
    told = capsys.readouterr().err
    assert "checkpoint-1 (thesis.txt)" in told
    assert "checkpoint-2 (notes)" in told
    assert names(tmp_path) == []  # the folders that are left are not checkpoints


def test_overwrite_keeps_folders_without_a_manifest(tmp_path: Path) -> None:
    run_of(tmp_path, 1)
    mine = {put(tmp_path / "checkpoint-7" / "model.safetensors"), put(tmp_path / "checkpoint-7" / "thesis.txt")}
    remove_earlier_runs(tmp_path)
    assert files(tmp_path) == mine


def test_overwrite_ignores_manifest_paths_outside(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    run_of(out, 1)
    mine = {put(tmp_path / "thesis.txt"), put(tmp_path / "other" / "a.txt"), put(out / "notes.txt")}
    (out / "checkpoint-1" / "link").symlink_to(tmp_path / "other")
    manifest = json.loads((out / "checkpoint-1" / "manifest.json").read_text())
    outside = ["../notes.txt", "../../thesis.txt", str(tmp_path / "thesis.txt"), "link/a.txt"]
    manifest["files"] |= {key: {"size": 4, "sha256": ""} for key in outside}
    (out / "checkpoint-1" / "manifest.json").write_text(json.dumps(manifest))
    put(out / "run.json", json.dumps({"files": ["../thesis.txt", "loss.png", 5, ""]}))
    remove_earlier_runs(out)
    assert {path for path in files(tmp_path) if not path.is_relative_to(out / "checkpoint-1")} == mine


def test_overwrite_keeps_links_to_other_folders(tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    run_of(out, 1)
    (out / "checkpoint-1").rename(elsewhere)
    (out / "checkpoint-1").symlink_to(elsewhere)
    there = files(elsewhere)
    remove_earlier_runs(out)
    assert files(elsewhere) == there
    assert (out / "checkpoint-1").is_symlink()


def test_overwrite_of_an_early_run_deletes_its_files(tmp_path: Path) -> None:
    run_of(tmp_path, 1).publish(1)
    put(tmp_path / "run.json", json.dumps({"versions": {"gpt2tg": "0.1.0"}, "model": {"step": 1}}))
    mine = {put(tmp_path / "diary.txt")}
    remove_earlier_runs(tmp_path)
    assert files(tmp_path) == mine


def test_pruning_keeps_files_not_in_a_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path, 1, limit=1)
    mine = {put(tmp_path / "checkpoint-1" / "thesis.txt")}
    run.add_checkpoint(draft(tmp_path), 2, {"run": {}})
    run.prune(None)
    assert names(tmp_path) == ["checkpoint-2"]
    assert files(tmp_path / "checkpoint-1") == mine
    assert "checkpoint-1 stays, because it holds files that no run wrote: thesis.txt" in capsys.readouterr().err


def test_saving_again_keeps_files_not_in_a_manifest(tmp_path: Path) -> None:
    run_of(tmp_path, 1)
    mine = put(tmp_path / "checkpoint-1" / "notes" / "thesis.txt")
    run_of(tmp_path, 1)
    assert mine.read_text() == "mine"
    assert durable.find_damage(tmp_path / "checkpoint-1") is None
    remove_earlier_runs(tmp_path)
    put(mine)
    run_of(tmp_path, 1)  # a folder with foreign files only has the name
    assert mine.read_text() == "mine"
    assert names(tmp_path) == ["checkpoint-1"]


class Killed(BaseException):
    """Stands in for kill -9: nothing catches it."""


def overwriting(directory: Path) -> None:
    remove_earlier_runs(directory)


def pruning(directory: Path) -> None:
    RunDirectory(directory, 1).prune(None)


def saving_again(directory: Path) -> None:
    RunDirectory(directory, None).add_checkpoint(draft(directory), 1, {"run": {}})


@pytest.mark.parametrize("work", [overwriting, pruning, saving_again])
def test_kill_at_any_moment_keeps_foreign_files(
    tmp_path: Path, work: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill the process at each system call that moves or deletes; the next run completes the work."""
    for home in ("training.output.durable", "training.output.run_directory", "io.atomic"):
        monkeypatch.setattr(f"gpt2tg.{home}.sync", lambda path: None)  # slow, and irrelevant here
    for moment in range(200):
        directory = tmp_path / str(moment)
        directory.mkdir()
        run_of(directory, 1, 2).publish(2)
        mine = {put(directory / "checkpoint-1" / "thesis.txt"), put(directory / "checkpoint-1" / "notes" / "a.txt")}
        calls = 0

        def deadly(name: str, moment: int = moment) -> Callable[..., None]:
            real = getattr(os, name)

            def call(*arguments: object, **settings: object) -> None:
                nonlocal calls
                calls += 1
                if calls > moment:
                    raise Killed
                real(*arguments, **settings)

            return call

        with monkeypatch.context() as patch:
            for name in ("unlink", "rename", "replace", "rmdir"):
                patch.setattr(os, name, deadly(name))
            try:
                work(directory)
            except Killed:
                killed = True
            else:
                killed = False
        for name in names(directory):
            assert durable.find_damage(directory / name) is None, (moment, name)
        remove_unfinished(directory)
        assert mine <= files(directory), moment
        assert work is overwriting or names(directory), "a checkpoint is left"
        assert not (directory / UNFINISHED).exists()
        if not killed:
            return
    pytest.fail("the work never completes")


def test_overwrite_deletes_our_files_only(tmp_path: Path) -> None:
    run_of(tmp_path, 1, 2).publish(2)
    (tmp_path / durable.UNFINISHED).mkdir(exist_ok=True)
    mine = [tmp_path / "diary.txt", tmp_path / "checkpoint-best" / "x", tmp_path / "runs" / "y"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    remove_earlier_runs(tmp_path)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(mine)


def test_drafts_of_a_killed_run_are_deleted(tmp_path: Path) -> None:
    run_of(tmp_path, 1).publish(1)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    for name in (
        "run.json.tmp",
        "README.md.tmp",
        "loss.png.tmp",
        "training_log.csv.tmp",
        ".unfinished/model.safetensors",
    ):
        (tmp_path / name).write_text("{")
    draft(tmp_path)
    remove_unfinished(tmp_path)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not (tmp_path / durable.UNFINISHED).exists()
