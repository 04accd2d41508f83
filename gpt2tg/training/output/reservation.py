"""Whether a run may have an output directory, and how it keeps others out of it."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gpt2tg.errors import UserError, one_line
from gpt2tg.training.output.directory import RUN_FILE, clear, is_ours, runs_below
from gpt2tg.training.output.durable import recover
from gpt2tg.training.output.locks import LOCK_FILES, locked


def check_output(directory: Path, resumes: bool, overwrite: bool, is_held: bool = False) -> None:
    """Decide whether a run may have this directory; nothing is left in it.

    Args:
        is_held: this run holds its lock already.

    Raises:
        UserError: another run works in it, it cannot be written to, or it holds something and no flag says what to do.
    """
    with _told_as_bad_directory(directory):
        for place in (directory, *directory.parents):
            if place.is_symlink() and not place.exists():  # also where links lead in a circle
                raise UserError(f"{place} is a link to nothing: give a directory", "output_dir")
        if directory.exists() and not directory.is_dir():
            raise UserError(f"{directory} is a file: give a directory", "output_dir")
        _require_writable(directory)
        found = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    if not is_held and found.intersection(LOCK_FILES):
        with locked(directory):
            pass
    if resumes or not found.difference(LOCK_FILES):
        return
    if not overwrite:
        raise UserError(
            f"{directory} is not empty: choose another, or go on with --resume, or start over with --overwrite",
            "output_dir",
        )
    if not is_ours(directory):
        raise UserError(
            f"would remove what a training run left in {directory}, but none did (it has no {RUN_FILE} of ours): "
            "choose another --output_dir",
            "overwrite",
        )
    for folder in runs_below(directory):
        check_output(folder, resumes=True, overwrite=False)


@contextlib.contextmanager
def _told_as_bad_directory(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # a name too long, a folder that may not be looked into
        raise UserError(f"{directory} cannot be used: {one_line(error.strerror or error)}", "output_dir") from None


def _require_writable(directory: Path) -> None:
    """Try it: permissions do not tell of read-only mounts, of quotas, or of places where nothing can be made."""
    missing = directory.resolve()
    while not missing.parent.exists():
        missing = missing.parent
    nearest = directory if directory.exists() else missing.parent
    why = "is no directory that can be written to"
    if nearest.is_dir():
        try:
            _try_to_write(nearest, missing)
            return
        except OSError as error:
            why = f"cannot be written to ({one_line(error.strerror or error)})"
    what = f"{nearest} {why}"
    raise UserError(what if nearest == directory else f"{directory} cannot be made: {what}", "output_dir")


def _try_to_write(nearest: Path, missing: Path) -> None:
    if not os.access(nearest, os.W_OK):
        raise PermissionError(errno.EACCES, "permission denied")
    if nearest == missing.parent:
        missing.mkdir()
        missing.rmdir()
    else:
        tempfile.TemporaryFile(dir=nearest).close()


class Reservation:
    """An output directory kept from other runs, from before it is looked into until the run has ended.

    One that holds something is locked when this is entered. An empty one, or none, is locked when it is opened: until
    then nothing is written.
    """

    def __init__(self, directory: Path, resumes: bool, overwrite: bool) -> None:
        self._directory = directory
        self._resumes, self._overwrite = resumes, overwrite
        self._held = contextlib.ExitStack()
        self._is_locked = False

    def __enter__(self) -> Reservation:
        """Raises UserError where the run may not have the directory."""
        check_output(self._directory, self._resumes, self._overwrite)
        if self._directory.is_dir() and any(self._directory.iterdir()):
            self._lock()
        return self

    def open(self) -> None:
        """Make the directory if need be, and clear it as the flags say.

        Raises:
            UserError: another run was faster.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        if not self._is_locked:
            self._lock()
        clear(self._directory, everything=self._overwrite)
        self._held.callback(clear, self._directory, everything=False)

    def _lock(self) -> None:
        with contextlib.ExitStack() as held:
            held.enter_context(locked(self._directory))
            # Once more: another run may have begun and ended since it was first looked at.
            check_output(self._directory, self._resumes, self._overwrite, is_held=True)
            if self._resumes:
                recover(self._directory)
            self._held = held.pop_all()
        self._is_locked = True

    def __exit__(self, *_: object) -> None:
        self._held.close()
