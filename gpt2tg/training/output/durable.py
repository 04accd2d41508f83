"""Checkpoints that are whole or not there, whatever happens while they are written or removed.

A checkpoint is written into a folder of another name, synced to the disk with a manifest of its files, and only then
given its name. One that is to go loses its name first. Only files that a manifest names are deleted: whatever else lies
in the folder of a checkpoint stays there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from gpt2tg.checkpoint.runs import MANIFEST
from gpt2tg.io.json_files import read_object

# In the output directory: what is being written, and what is being removed.
UNFINISHED = ".unfinished"

# What a checkpoint is called there while it is removed, and while another takes its place.
REMOVED, REPLACED = "removed-", "replaced-"

# The end of the name of a text file that is being written.
DRAFT_SUFFIX = ".tmp"

# What systems answer that cannot sync a folder: network mounts, file systems in user space.
NO_FOLDER_SYNC = {
    getattr(errno, name, None)
    for name in ("EINVAL", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EBADF", "EACCES", "EPERM", "EISDIR")
}

CHUNK_BYTES = 1 << 20


def seal(directory: Path, facts: dict[str, Any]) -> None:
    """Write the manifest, sizes and sha256 of all files beside some facts, and sync everything to the disk."""
    files = {
        path.relative_to(directory).as_posix(): {"size": path.stat().st_size, "sha256": checksum(path)}
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    (directory / MANIFEST).write_text(json.dumps({**facts, "files": files}, indent=2) + "\n", encoding="utf-8")
    for path in directory.rglob("*"):
        sync(path)
    sync(directory)


def damage(checkpoint: Path, needed: tuple[str, ...] = ()) -> str | None:
    """What is wrong with a checkpoint, in a few words; None where it is as it was written.

    Args:
        needed: files that its manifest must name.
    """
    try:
        files = read_manifest(checkpoint)["files"]
        for name in (*needed, *files):
            if name not in files or not (checkpoint / name).is_file():
                return f"it lacks {name}"
        for name, wanted in files.items():
            size = (checkpoint / name).stat().st_size
            if size != wanted["size"]:
                return f"{name} is of {size:,} bytes, not {wanted['size']:,}"
            if checksum(checkpoint / name) != wanted["sha256"]:
                return f"{name} is not what was written"
    except FileNotFoundError:
        return f"it lacks {MANIFEST}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be made use of: {error}"
    return None


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """What the manifest holds.

    Raises:
        OSError: it is not there.
        ValueError: it is no JSON object.
    """
    return read_object(checkpoint / MANIFEST)


def put_in_place(draft: Path, final: Path) -> None:
    """Give a sealed checkpoint its name. Of what bore it before, our files are removed; others stay, beside ours.

    Raises:
        PermissionError: on Windows, where another program has a file of the earlier one open. The draft stays.
    """
    earlier = _set_aside(final, REPLACED) if os.path.lexists(final) else None
    draft.rename(final)
    sync(final.parent)
    if earlier is not None:
        _take_apart(earlier, final)


def remove(checkpoint: Path) -> None:
    """Remove the files that its manifest names, and the folder if it holds nothing else.

    A kill in between leaves no half of a checkpoint under its name: `recover` ends what was begun. A folder without a
    manifest, or a link to one, is left as it is, unless it is empty.

    Raises:
        PermissionError: on Windows, where another program has one of the files open. Nothing has changed.
    """
    if not checkpoint.is_symlink() and (checkpoint / MANIFEST).is_file():
        _take_apart(_set_aside(checkpoint, REMOVED), checkpoint)
    elif not _entries(checkpoint):
        checkpoint.rmdir()


def recover(directory: Path) -> None:
    """End what a killed run had begun: removals are completed, and a checkpoint that was to be replaced comes back."""
    for aside in _entries(directory / UNFINISHED):
        _recover(aside, directory)


def _recover(aside: Path, directory: Path) -> None:
    if aside.name.startswith(REMOVED):
        _take_apart(aside, directory / aside.name.removeprefix(REMOVED))
    elif aside.name.startswith(REPLACED):
        home = directory / aside.name.removeprefix(REPLACED)
        if os.path.lexists(home):
            _take_apart(aside, home)
        else:
            aside.rename(home)


def _set_aside(checkpoint: Path, prefix: str) -> Path:
    unfinished = checkpoint.parent / UNFINISHED
    unfinished.mkdir(exist_ok=True)
    for earlier in (unfinished / f"{REMOVED}{checkpoint.name}", unfinished / f"{REPLACED}{checkpoint.name}"):
        if os.path.lexists(earlier):
            _recover(earlier, checkpoint.parent)
    return checkpoint.rename(unfinished / f"{prefix}{checkpoint.name}")


def _take_apart(aside: Path, home: Path) -> None:
    """Delete our files of a checkpoint that has lost its name; what else it holds goes back to where it was.

    The manifest is deleted last, so that a kill at any moment leaves the names of those still to delete. A file that
    cannot be deleted now is left for `recover`.
    """
    if aside.is_symlink() or not aside.is_dir():  # nothing that we made
        aside.rename(_free_name(home))
        return
    with contextlib.suppress(OSError):
        delete_files(aside, {*named_files(aside), *named_files(home)} - {MANIFEST})
        (aside / MANIFEST).unlink(missing_ok=True)
        if not _entries(aside):
            aside.rmdir()
        elif not os.path.lexists(home):
            aside.rename(home)
        else:
            _move_into(aside, home)


def _move_into(source: Path, target: Path) -> None:
    """Move what a folder holds into another one, which has none of it."""
    for path in _entries(source):
        place = target / path.name
        if path.is_dir() and not path.is_symlink() and place.is_dir():
            _move_into(path, place)
        else:
            path.rename(_free_name(place))
    source.rmdir()


def _free_name(path: Path) -> Path:
    while os.path.lexists(path):
        path = path.with_name(f"{path.name}.kept")
    return path


def named_files(checkpoint: Path) -> set[str]:
    """The files that the manifest of a checkpoint names, the manifest itself included; none where it has none."""
    try:
        return {*inside(read_manifest(checkpoint)["files"]), MANIFEST}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()


def inside(names: Iterable[Any]) -> Iterator[str]:
    """Those of the names that stay within a directory."""
    for name in names:
        if isinstance(name, str) and name and "\0" not in name:
            path = PurePosixPath(name)
            if not path.is_absolute() and ".." not in path.parts:
                yield name


def delete_files(directory: Path, names: Iterable[str]) -> None:
    """Delete files of a directory, and the folders in it that are empty after that. What lies behind a link is left."""
    root, folders = directory.resolve(), set()
    for path in (directory / name for name in names):
        if path.parent.resolve().is_relative_to(root) and (path.is_file() or path.is_symlink()):
            path.unlink()
            folders |= {folder for folder in path.parents if folder.is_relative_to(directory) and folder != directory}
    for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
        with contextlib.suppress(OSError):  # it holds something that is not ours
            folder.rmdir()


def _entries(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def write_whole(path: Path, content: str) -> None:
    """Write a text file whole or not at all."""
    draft = path.with_name(path.name + DRAFT_SUFFIX)
    try:
        draft.write_text(content, encoding="utf-8", newline="\n")
        sync(draft)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def checksum(path: Path) -> str:
    """sha256 of a file, in bounded memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Have the system write a file or a folder to the disk now. Not all systems can do that with a folder."""
    if not path.is_dir():
        _sync(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    elif os.name != "nt":
        try:
            _sync(path, os.O_RDONLY)
        except OSError as error:
            if error.errno not in NO_FOLDER_SYNC:
                raise


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
