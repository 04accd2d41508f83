"""The output directory of a run: checkpoints, the published model, cleaning up."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt2tg.checkpoint.runs import choose_checkpoint, listing, saved_checkpoints
from gpt2tg.errors import RunError, UserError
from gpt2tg.options import TrainingOptions
from gpt2tg.training.output import durable, saved_state
from gpt2tg.training.output.locks import locked
from gpt2tg.training.output.reservation import check_output
from gpt2tg.training.output.resumable import find_resumable
from gpt2tg.training.output.run_directory import RunDirectory


@pytest.fixture(autouse=True)
def accept_placeholder_checkpoints() -> Iterator[None]:
    """Checkpoints here hold a few words; test_saved_state.py tests the content of real ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saved_state, "find_fault", lambda checkpoint: None)
        yield


def draft(directory: Path, content: str = "weights") -> Path:
    """Write an unsealed checkpoint, and return its path."""
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


def test_sealed_checkpoint_is_intact_until_a_bit_changes(tmp_path: Path) -> None:
    run_of(tmp_path, 5)
    checkpoint = tmp_path / "checkpoint-5"
    assert durable.find_damage(checkpoint, ("optimizer.pt",)) is None
    for name in ("model.safetensors", "optimizer.pt"):
        content = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(content[:-1])
        assert name in (durable.find_damage(checkpoint) or "")
        (checkpoint / name).write_bytes(bytes([content[0] ^ 1]) + content[1:])
        assert durable.find_damage(checkpoint) == f"{name} has changed since it was written"
        (checkpoint / name).write_bytes(content)
    assert durable.find_damage(checkpoint, ("scaler.pt",)) == "it lacks scaler.pt"
    (checkpoint / "manifest.json").write_text('{"files": [1, 2]}')
    assert durable.find_damage(checkpoint)


@pytest.mark.parametrize("failing", ["sync", "checksum", "put_in_place"])
def test_failed_save_keeps_earlier_checkpoints(tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a save fails, the earlier checkpoints stay intact and no partial one appears."""
    run = run_of(tmp_path, 1, 2, limit=1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    home = "gpt2tg.training.output.run_directory" if failing == "put_in_place" else "gpt2tg.training.output.durable"
    monkeypatch.setattr(f"{home}.{failing}", full)
    with pytest.raises(OSError, match="No space"):
        run.add_checkpoint(draft(tmp_path), 3, {"run": {}})
    monkeypatch.undo()
    assert names(tmp_path) == ["checkpoint-2"]
    assert find_resumable(tmp_path, "newest").name == "checkpoint-2"


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    run_of(tmp_path, 1, 2)
    run_of(tmp_path, 1)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-1"]
    assert find_resumable(tmp_path, "newest").name == "checkpoint-1"


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [(None, None, [1, 2, 3, 4]), (2, None, [3, 4]), (1, 2, [2, 4]), (2, 4, [3, 4]), (1, 1, [1, 4])],
)
def test_newest_and_best_checkpoints_are_kept(
    tmp_path: Path, limit: int | None, best: int | None, left: list[int]
) -> None:
    run_of(tmp_path, 1, 2, 3, 4, limit=limit, best=best)
    assert names(tmp_path) == [f"checkpoint-{step}" for step in left]


@pytest.mark.parametrize("has_links", [True, False])
def test_publish_puts_a_checkpoint_into_the_directory(
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
    run.publish(7)  # its checkpoint is gone: nothing changes
    assert (tmp_path / "model.safetensors").read_text() == "weights of 1"
    shutil.rmtree(tmp_path / "checkpoint-1")
    assert (tmp_path / "model.safetensors").read_text() == "weights of 1"


def test_one_run_per_directory(tmp_path: Path) -> None:
    with locked(tmp_path):
        for resumes, overwrite in ((True, False), (False, True), (False, False)):
            with pytest.raises(UserError, match="in use by another training run"):
                check_output(tmp_path, resumes, overwrite)
    check_output(tmp_path, resumes=False, overwrite=False)  # an unheld lock file does not count as content


def test_damaged_manifests_are_skipped(tmp_path: Path) -> None:
    run_of(tmp_path, 1, 2)
    for content in ("", "[]", '{"order": {}}', "\0"):
        (tmp_path / "checkpoint-2" / "manifest.json").write_text(content)
        assert find_resumable(tmp_path, "newest").name == "checkpoint-1"
    (tmp_path / "checkpoint-1" / "manifest.json").unlink()
    with pytest.raises(RunError, match="all 2 checkpoints"):
        find_resumable(tmp_path, "newest")


def test_default_keeps_two_checkpoints_and_the_best(tmp_path: Path) -> None:
    limit = TrainingOptions(train_file="a.txt").save_total_limit
    run_of(tmp_path, 1, 2, 3, 4, 5, limit=limit, best=1)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-4", "checkpoint-5"]
    run_of(tmp_path, 6, 7, limit=TrainingOptions(train_file="a.txt", save_total_limit=0).save_total_limit)
    assert len(names(tmp_path)) == 5


@pytest.mark.parametrize("has_links", [True, False])
def test_files_are_synced_before_they_are_renamed(
    tmp_path: Path, has_links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power may fail at any moment: files are renamed only after they are synced, and run.json is written last."""
    events: list[tuple[str, str]] = []
    sync, replace = durable.sync, Path.replace

    def synced(path: Path) -> None:
        events.append(("sync", path.name))
        sync(path)

    def replaced(source: Path, target: Path) -> Path:
        events.append(("name", target.name))
        return replace(source, target)

    run = run_of(tmp_path, 1)
    monkeypatch.setattr(durable, "sync", synced)
    monkeypatch.setattr("gpt2tg.training.output.run_directory.sync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    if not has_links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    run.publish(1)
    named = events.index(("name", "model.safetensors"))
    assert has_links or ("sync", "model.safetensors") in events[:named]
    assert ("sync", tmp_path.name) in events[named:]
    assert events[-1] == ("name", "run.json")


@pytest.mark.parametrize("how", ["cut", "gone"])
def test_truncated_model_is_published_again(tmp_path: Path, how: str) -> None:
    run = run_of(tmp_path, 1)
    run.publish(1)
    assert run.holds(1)
    model = tmp_path / "model.safetensors"
    model.unlink()  # one of two hard links: the file in the checkpoint stays
    if how == "cut":
        model.write_text("")
    assert not run.holds(1)
    run.publish(1)
    assert run.holds(1)
    assert model.read_text() == "weights of 1"


@pytest.mark.parametrize("working", ["publish", "remove"])
def test_file_locked_by_another_program_is_retried(
    tmp_path: Path, working: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Windows cannot rename or delete a file that a session has mapped: the next save tries again."""
    run = run_of(tmp_path, 1, limit=1)
    run.tidy(1, None)
    run.add_checkpoint(draft(tmp_path, "weights of 2"), 2, {"run": {}})
    rename = {"publish": "replace", "remove": "rename"}[working]
    real = getattr(Path, rename)  # not of os: pathlib of Python 3.10 holds on to that

    def held(source: Path, target: Path) -> Path:
        if target.name in ("model.safetensors", "removed-checkpoint-1"):
            raise PermissionError(13, "The process cannot access the file", str(source))
        return real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, rename, held)
        run.tidy(2, None)
    assert "tried again at the next save" in capsys.readouterr().err
    assert durable.find_damage(tmp_path / "checkpoint-2") is None
    assert (tmp_path / "model.safetensors").read_text() == f"weights of {1 if working == 'publish' else 2}"
    run.tidy(2, None)
    assert (tmp_path / "model.safetensors").read_text() == "weights of 2"
    assert names(tmp_path) == ["checkpoint-2"]


# --- choosing among checkpoints to generate from --------------------------------------------------------------


def test_checkpoint_is_chosen_by_name_or_step(tmp_path: Path) -> None:
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


def test_directory_without_checkpoints_is_refused(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="holds no checkpoint-N"):
            choose_checkpoint(str(directory), "last")
        with pytest.raises(UserError, match=r"holds no model|does not exist"):
            listing(str(directory), "model_path")
