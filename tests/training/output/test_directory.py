"""The output directory: who may work in it, what stays in it, what it holds itself."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt2tg.checkpoint.runs import choose_checkpoint, listing, saved_checkpoints
from gpt2tg.errors import RunError, UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.training.data.cache_directory import writable
from gpt2tg.training.output import durable, saved_state
from gpt2tg.training.output.directory import RunDirectory, clear, find_resumable
from gpt2tg.training.output.locks import locked
from gpt2tg.training.output.reservation import check_output


@pytest.fixture(autouse=True)
def stand_ins_will_do() -> Iterator[None]:
    """The checkpoints here are a few words each: what real ones must hold is tested in test_saved_state.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saved_state, "find_fault", lambda checkpoint: None)
        yield


def draft(directory: Path, content: str = "weights") -> Path:
    """A checkpoint that waits for its name."""
    path = directory / durable.UNFINISHED / "draft"
    path.mkdir(parents=True)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "config.json"):
        (path / name).write_text(content)
    (path / "model.safetensors").write_text(content)
    return path


def run_of(directory: Path, *steps: int, limit: int | None = None, best: int | None = None) -> RunDirectory:
    run = RunDirectory(directory, limit)
    for step in steps:
        run.add_checkpoint(draft(directory, f"weights of {step}"), step, {"run": {}})
        run.prune(best)
    return run


def names(directory: Path) -> list[str]:
    return [saved.path.name for saved in saved_checkpoints(directory)]


def test_a_sealed_checkpoint_is_whole_until_a_bit_changes(tmp_path: Path) -> None:
    run_of(tmp_path, 5)
    checkpoint = tmp_path / "checkpoint-5"
    assert durable.damage(checkpoint, ("optimizer.pt",)) is None
    for name in ("model.safetensors", "optimizer.pt"):
        content = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(content[:-1])
        assert name in (durable.damage(checkpoint) or "")
        (checkpoint / name).write_bytes(bytes([content[0] ^ 1]) + content[1:])
        assert durable.damage(checkpoint) == f"{name} is not what was written"
        (checkpoint / name).write_bytes(content)
    assert durable.damage(checkpoint, ("scaler.pt",)) == "it lacks scaler.pt"
    (checkpoint / "manifest.json").write_text('{"files": [1, 2]}')
    assert durable.damage(checkpoint)


@pytest.mark.parametrize("failing", ["sync", "checksum", "put_in_place"])
def test_a_failure_while_saving_leaves_what_was_there(
    tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every point of a save a failure, or a kill, leaves the earlier checkpoints whole and no half of a new one."""
    run = run_of(tmp_path, 1, 2, limit=1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    home = "gpt2tg.training.output.directory" if failing == "put_in_place" else "gpt2tg.training.output.durable"
    monkeypatch.setattr(f"{home}.{failing}", full)
    with pytest.raises(OSError, match="No space"):
        run.add_checkpoint(draft(tmp_path), 3, {"run": {}})
    monkeypatch.undo()
    assert names(tmp_path) == ["checkpoint-2"]
    assert find_resumable(tmp_path, "newest").name == "checkpoint-2"


def test_a_step_saved_again_replaces_what_was_there(tmp_path: Path) -> None:
    run_of(tmp_path, 1, 2)
    run_of(tmp_path, 1)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-1"]
    assert find_resumable(tmp_path, "newest").name == "checkpoint-1"


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [(None, None, [1, 2, 3, 4]), (2, None, [3, 4]), (1, 2, [2, 4]), (2, 4, [3, 4]), (1, 1, [1, 4])],
)
def test_the_newest_stay_and_the_best(tmp_path: Path, limit: int | None, best: int | None, left: list[int]) -> None:
    run_of(tmp_path, 1, 2, 3, 4, limit=limit, best=best)
    assert names(tmp_path) == [f"checkpoint-{step}" for step in left]


@pytest.mark.parametrize("has_links", [True, False])
def test_the_directory_holds_the_model_of_a_checkpoint(
    tmp_path: Path, has_links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_links:

        def no_links(*_: object) -> None:
            raise OSError("no links here")

        monkeypatch.setattr(os, "link", no_links)
    run = run_of(tmp_path, 1, 2)
    for step in (1, 2, 1):
        run.publish(step)
        assert (tmp_path / "model.safetensors").read_text() == f"weights of {step}"
        assert json.loads((tmp_path / "run.json").read_text())["model"]["step"] == step
    run.publish(7)  # gone: what is there stays
    assert (tmp_path / "model.safetensors").read_text() == "weights of 1"
    shutil.rmtree(tmp_path / "checkpoint-1")
    assert (tmp_path / "model.safetensors").read_text() == "weights of 1"


def test_one_run_per_directory(tmp_path: Path) -> None:
    with locked(tmp_path):
        for resumes, overwrite in ((True, False), (False, True), (False, False)):
            with pytest.raises(UserError, match="in use by another training run"):
                check_output(tmp_path, resumes, overwrite)
    check_output(tmp_path, resumes=False, overwrite=False)  # a lock that nobody holds is no content


def test_overwrite_takes_out_our_own_and_nothing_else(tmp_path: Path) -> None:
    run_of(tmp_path, 1, 2).publish(2)
    (tmp_path / durable.UNFINISHED).mkdir(exist_ok=True)
    mine = [tmp_path / "diary.txt", tmp_path / "checkpoint-best" / "x", tmp_path / "runs" / "y"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    clear(tmp_path, everything=True)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(mine)


def test_broken_manifests_are_no_surprise(tmp_path: Path) -> None:
    run_of(tmp_path, 1, 2)
    for content in ("", "[]", '{"order": {}}', "\0"):
        (tmp_path / "checkpoint-2" / "manifest.json").write_text(content)
        assert find_resumable(tmp_path, "newest").name == "checkpoint-1"
    (tmp_path / "checkpoint-1" / "manifest.json").unlink()
    with pytest.raises(RunError, match="all 2 checkpoints"):
        find_resumable(tmp_path, "newest")


def test_two_checkpoints_and_the_best_stay_by_default(tmp_path: Path) -> None:
    limit = TrainingOptions(train_file="a.txt").save_total_limit
    run_of(tmp_path, 1, 2, 3, 4, 5, limit=limit, best=1)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-4", "checkpoint-5"]
    run_of(tmp_path, 6, 7, limit=TrainingOptions(train_file="a.txt", save_total_limit=0).save_total_limit)
    assert len(names(tmp_path)) == 5


@pytest.mark.parametrize("has_links", [True, False])
def test_what_the_directory_holds_is_on_the_disk_before_it_is_told(
    tmp_path: Path, has_links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power may fail at any moment: no name is given to content that is not synced, and run.json comes last."""
    events: list[tuple[str, str]] = []
    sync, replace = durable.sync, os.replace

    def synced(path: Path) -> None:
        events.append(("sync", path.name))
        sync(path)

    def replaced(source: Path, target: Path) -> None:
        events.append(("name", Path(target).name))
        replace(source, target)

    run = run_of(tmp_path, 1)
    monkeypatch.setattr(durable, "sync", synced)
    monkeypatch.setattr("gpt2tg.training.output.directory.sync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    if not has_links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    run.publish(1)
    named = events.index(("name", "model.safetensors"))
    assert has_links or ("sync", "model.safetensors") in events[:named]
    assert ("sync", tmp_path.name) in events[named:]
    assert events[-1] == ("name", "run.json")


@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_model_that_is_not_as_large_as_written_is_published_again(tmp_path: Path, how: str) -> None:
    run = run_of(tmp_path, 1)
    run.publish(1)
    assert run.holds(1)
    model = tmp_path / "model.safetensors"
    model.unlink()  # a second name of the file in the checkpoint, which stays whole
    if how == "cut":
        model.write_text("")
    assert not run.holds(1)
    run.publish(1)
    assert run.holds(1)
    assert model.read_text() == "weights of 1"


@pytest.mark.parametrize("working", ["publish", "remove"])
def test_what_another_program_has_open_ends_no_run(
    tmp_path: Path, working: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Windows renames and removes no file that a session has mapped: it is told, and tried again at the next save."""
    run = run_of(tmp_path, 1, limit=1)
    run.tidy(1, None)
    run.add_checkpoint(draft(tmp_path, "weights of 2"), 2, {"run": {}})
    rename = {"publish": "replace", "remove": "rename"}[working]
    real = getattr(os, rename)

    def held(source: Path, target: Path) -> None:
        if Path(target).name in ("model.safetensors", "removed-checkpoint-1"):
            raise PermissionError(13, "The process cannot access the file", str(source))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, rename, held)
        run.tidy(2, None)
    assert "tried again at the next save" in capsys.readouterr().err
    assert durable.damage(tmp_path / "checkpoint-2") is None
    assert (tmp_path / "model.safetensors").read_text() == f"weights of {1 if working == 'publish' else 2}"
    run.tidy(2, None)
    assert (tmp_path / "model.safetensors").read_text() == "weights of 2"
    assert names(tmp_path) == ["checkpoint-2"]


def test_drafts_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    run_of(tmp_path, 1).publish(1)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    for name in ("run.json.tmp", "README.md.tmp", "training_log.csv.tmp", ".unfinished/model.safetensors"):
        (tmp_path / name).write_text("{")
    draft(tmp_path)
    clear(tmp_path, everything=False)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not (tmp_path / durable.UNFINISHED).exists()


def test_tokens_are_kept_where_one_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images bring models along in a folder that is read-only; a home may be so too."""
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
    found.parent.chmod(0o777)  # anybody could put tokens there
    assert writable(tmp_path / "file" / "b") == tmp_path / "file" / "b"


# --- choosing among checkpoints to generate from --------------------------------------------------------------


def test_choosing_a_checkpoint(tmp_path: Path) -> None:
    run_of(tmp_path, 10, 20, 30).publish(20)
    (tmp_path / "training_log.csv").write_text(
        "step,epoch,loss,validation_loss\n5,1,4.0,\n10,1,,3.5\n20,2,,3.25\n25,2,,1.0\n30,3,,3.75\n"
    )
    chosen = {which: choose_checkpoint(str(tmp_path), which).name for which in ("best", "last", "10")}
    assert chosen == {"best": "checkpoint-20", "last": "checkpoint-30", "10": "checkpoint-10"}
    with pytest.raises(UserError, match=r"checkpoint 7: .* holds no checkpoint of that step, but of 10, 20, 30"):
        choose_checkpoint(str(tmp_path), "7")
    assert listing(str(tmp_path), "model_path").splitlines() == [
        "    step  validation loss",
        "      10           3.5000",
        "      20           3.2500  best, in the directory itself",
        "      30           3.7500  last",
    ]
    (tmp_path / "training_log.csv").unlink()
    with pytest.raises(UserError, match=r"no checkpoint in .* was measured: use last"):
        choose_checkpoint(str(tmp_path), "best")


def test_no_checkpoint_to_choose(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="holds no checkpoint-N"):
            choose_checkpoint(str(directory), "last")
        with pytest.raises(UserError, match=r"holds no model|does not exist"):
            listing(str(directory), "model_path")
