"""Decide whether a run may use an output directory, and keep other runs out of it."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gpt2tg.errors import UserError, one_line
from gpt2tg.training.output.cleanup import remove_earlier_runs, remove_unfinished
from gpt2tg.training.output.durable import recover
from gpt2tg.training.output.layout import RUN_FILE, is_ours, runs_below
from gpt2tg.training.output.locks import LOCK_FILES, locked


def check_output(directory: Path, resumes: bool, overwrite: bool, is_locked: bool = False) -> None:
    """Check that a run may use this directory. Changes nothing in it.

    Args:
        is_locked: this run already holds the directory's lock.

    Raises:
        UserError: another run works in it, it cannot be written to, or it is not empty and no flag says what to do.
    """
    with _explain_unusable(directory):
        for place in (directory, *directory.parents):
            if place.is_symlink() and not place.exists():  # also if links form a loop
                raise UserError(f"{place} is a broken link: give a directory", "output_dir")
        if directory.exists() and not directory.is_dir():
            raise UserError(f"{directory} is a file: give a directory", "output_dir")
        _check_writable(directory)
        found = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    if not is_locked and found.intersection(LOCK_FILES):
        with locked(directory):
            pass
    if resumes or not found.difference(LOCK_FILES):
        return
    if not overwrite:
        raise UserError(
            f"{directory} is not empty: choose another, or continue with --resume, or start over with --overwrite",
            "output_dir",
        )
    if not is_ours(directory):
        raise UserError(
            f"deletes the files of an earlier training run, but {directory} holds none (it has no {RUN_FILE} of ours): "
            "choose another --output_dir",
            "overwrite",
        )
    for folder in runs_below(directory):
        check_output(folder, resumes=True, overwrite=False)


@contextlib.contextmanager
def _explain_unusable(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # a name that is too long, a folder without permission to list it
        raise UserError(f"{directory} cannot be used: {one_line(error.strerror or error)}", "output_dir") from None


def _check_writable(directory: Path) -> None:
    """Try to write: permissions alone do not reveal read-only mounts, quotas, or places like /proc."""
    missing = directory.resolve()
    while not missing.parent.exists():
        missing = missing.parent
    nearest = directory if directory.exists() else missing.parent
    reason = "is not a directory that can be written to"
    if nearest.is_dir():
        try:
            _try_to_write(nearest, missing)
            return
        except OSError as error:
            reason = f"cannot be written to ({one_line(error.strerror or error)})"
    fault = f"{nearest} {reason}"
    raise UserError(fault if nearest == directory else f"{directory} cannot be created: {fault}", "output_dir")


def _try_to_write(nearest: Path, missing: Path) -> None:
    if not os.access(nearest, os.W_OK):
        raise PermissionError(errno.EACCES, "permission denied")
    if nearest == missing.parent:
        missing.mkdir()
        missing.rmdir()
    else:
        tempfile.TemporaryFile(dir=nearest).close()


class Reservation:
    """A context manager that keeps other runs out of an output directory until the run has ended.

    A directory with content is locked on entry. An empty or missing one is locked by `open`: nothing is written before.
    """

    def __init__(self, directory: Path, resumes: bool, overwrite: bool) -> None:
        self._directory = directory
        self._resumes, self._overwrite = resumes, overwrite
        self._at_exit = contextlib.ExitStack()
        self._is_locked = False

    def __enter__(self) -> Reservation:
        """Check the directory, and lock it if it has content.

        Raises:
            UserError: the run may not use it.
        """
        check_output(self._directory, self._resumes, self._overwrite)
        if self._directory.is_dir() and any(self._directory.iterdir()):
            self._lock()
        return self

    def open(self) -> None:
        """Create the directory if it is missing, and clean it up as the flags say.

        Raises:
            UserError: another run was faster.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        if not self._is_locked:
            self._lock()
        if self._overwrite:
            remove_earlier_runs(self._directory)
        else:
            remove_unfinished(self._directory)
        self._at_exit.callback(remove_unfinished, self._directory)

    def _lock(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(self._directory))
            # Check again: another run may have started and ended since the first check.
            check_output(self._directory, self._resumes, self._overwrite, is_locked=True)
            if self._resumes:
                recover(self._directory)
            self._at_exit = stack.pop_all()
        self._is_locked = True

    def __exit__(self, *_: object) -> None:
        self._at_exit.close()
