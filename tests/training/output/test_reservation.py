"""Only one run may use a directory, from the first check until it has ended."""

from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from test_run_directory import names, run_of

from gpt2tg.errors import RunError, UserError
from gpt2tg.training.output import durable
from gpt2tg.training.output.locks import LOCK_FILE, locked
from gpt2tg.training.output.reservation import Reservation, check_output
from gpt2tg.training.output.resumable import check_resumable
from gpt2tg.training.output.run_directory import RunDirectory
from gpt2tg.training.processes import run_on_main_process

WAYS = [(True, False), (False, True)]  # --resume, --overwrite


def ours(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    RunDirectory(directory, None).update(versions={"gpt2tg": "0.1.0"})
    run_of(directory, 1)
    return directory


@pytest.mark.parametrize(("resumes", "overwrite"), WAYS)
def test_directory_is_locked_from_the_first_check_on(tmp_path: Path, resumes: bool, overwrite: bool) -> None:
    """A second run is refused from the first check on, not only after the first run has read its text and model."""
    ours(tmp_path)
    with Reservation(tmp_path, resumes, overwrite):
        for second in WAYS:
            with pytest.raises(UserError, match="in use by another training run"), Reservation(tmp_path, *second):
                pass
    with Reservation(tmp_path, resumes, overwrite) as place:
        place.open()
        for second in WAYS:
            with pytest.raises(UserError, match="in use by another training run"):
                check_output(tmp_path, *second)
    check_output(tmp_path, resumes, overwrite)


@pytest.mark.parametrize("exists", [True, False])
def test_run_that_ended_meanwhile_is_not_overwritten(tmp_path: Path, exists: bool) -> None:
    """Both found an empty directory. The other was faster, and has ended when this one opens it."""
    out = tmp_path / "out"
    if exists:
        out.mkdir()
    with Reservation(out, False, False) as place:
        assert not out.is_dir() or not list(out.iterdir())  # nothing is written before `open`
        with Reservation(out, False, False) as other:
            other.open()
            ours(out)
        with pytest.raises(UserError, match="is not empty"):
            place.open()
    assert names(out) == ["checkpoint-1"]


def test_trial_in_use_is_not_overwritten(tmp_path: Path) -> None:
    ours(tmp_path)
    below = ours(tmp_path / "tries" / "epochs=1")
    with locked(below), pytest.raises(UserError, match="epochs=1 is in use by another training run"):
        check_output(tmp_path, resumes=False, overwrite=True)
    with Reservation(tmp_path, False, True) as place:
        place.open()
        assert {path.name for path in tmp_path.iterdir()} == {LOCK_FILE}


def _one_of_three(directory: Path, rank: int) -> None:
    """Run one of three processes of a group; it exits with 7 if all of them got the directory 20 times."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "3"}
    store = f"file://{directory.parent / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=3)

    def look() -> int:
        with Reservation(directory, resumes=True, overwrite=False):
            return 7 if rank == 0 else 8

    found = {run_on_main_process(look) for _ in range(20)}
    with pytest.raises(UserError, match="is not empty"):
        run_on_main_process(lambda: check_output(directory, resumes=False, overwrite=False))
    os._exit(found.pop() if len(found) == 1 else 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_processes_of_one_run_share_its_lock(tmp_path: Path) -> None:
    """Only the main process takes the lock, which the others would find held. If it refuses, all do."""
    ours(tmp_path / "out")
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_one_of_three, args=(tmp_path / "out", rank)) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [7, 7, 7]


@pytest.mark.parametrize("code", [errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK])
def test_soft_lock_where_the_file_system_has_none(tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(pytest.importorskip("fcntl", reason="Windows has no flock"), "flock", none)
    with locked(tmp_path), pytest.raises(UserError, match="in use by another training run"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_unwritable_lock_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(FileLock, "acquire", broken)
    with pytest.raises(RunError, match="cannot write to"), locked(tmp_path):
        pass


@pytest.mark.parametrize(("code", "is_fine"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_saving_on_file_systems_without_directory_sync(
    tmp_path: Path, code: int, is_fine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network mounts cannot sync directories. A disk error is not ignored."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(code, os.strerror(code))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    if is_fine:
        run_of(tmp_path, 1)
        assert durable.find_damage(tmp_path / "checkpoint-1") is None
    else:
        with pytest.raises(OSError, match=os.strerror(code)):
            run_of(tmp_path, 1)


def test_broken_links_in_the_path_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for name in ("link", "circle"):
        for path in (tmp_path / name, tmp_path / name / "out", tmp_path / name / "a" / "b"):
            with pytest.raises(UserError, match=f"{name} is a broken link"):
                check_output(path, resumes=False, overwrite=False)
    run_of(tmp_path, 1)
    with pytest.raises(UserError, match="circle is no checkpoint of"):
        check_resumable(tmp_path, str(tmp_path / "circle"))


def test_unwritable_places_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    bad = [tmp_path / "file", tmp_path / "file" / "out", tmp_path / "link", Path("/proc/out"), Path("/dev/null/out")]
    for path in (*bad, tmp_path / ("long" * 100), Path("/proc/self/fd")):
        with pytest.raises(UserError, match="output_dir"):
            check_output(path, resumes=False, overwrite=False)
    check_output(tmp_path / "a" / "b" / "c", resumes=False, overwrite=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]  # the attempt left nothing
