"""Checkpoints that are complete or absent, whatever happens while they are written or removed.

A checkpoint is written in a folder of another name, synced to the disk with a manifest of its files, and only then
renamed. A checkpoint to be removed is renamed first. Only files that a manifest lists are deleted: any other file in
the folder of a checkpoint stays.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from gpt2tg.checkpoint.runs import MANIFEST
from gpt2tg.io.atomic import replacing, sync
from gpt2tg.io.json_files import read_object

# The folder in the output directory for checkpoints that are being written or removed.
UNFINISHED = ".unfinished"

# Prefixes of a checkpoint's name there while it is removed, and while another takes its place.
REMOVED, REPLACED = "removed-", "replaced-"

# The suffix of a file that is being written.
DRAFT_SUFFIX = ".tmp"

CHUNK_BYTES = 1 << 20


def seal(directory: Path, facts: dict[str, Any]) -> None:
    """Write the manifest, `facts` plus size and sha256 of each file, and sync everything to the disk."""
    files = {
        path.relative_to(directory).as_posix(): {"size": path.stat().st_size, "sha256": checksum(path)}
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    (directory / MANIFEST).write_text(json.dumps({**facts, "files": files}, indent=2) + "\n", encoding="utf-8")
    for path in directory.rglob("*"):
        sync(path)
    sync(directory)


def find_damage(checkpoint: Path, required: tuple[str, ...] = ()) -> str | None:
    """Compare a checkpoint with its manifest, and return the first fault in a few words; None if it is intact.

    Args:
        required: files that the manifest must list.
    """
    try:
        files = read_manifest(checkpoint)["files"]
        for name in (*required, *files):
            if name not in files or not (checkpoint / name).is_file():
                return f"it lacks {name}"
        for name, written in files.items():
            size = (checkpoint / name).stat().st_size
            if size != written["size"]:
                return f"{name} has {size:,} bytes, not {written['size']:,}"
            if checksum(checkpoint / name) != written["sha256"]:
                return f"{name} has changed since it was written"
    except FileNotFoundError:
        return f"it lacks {MANIFEST}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be used: {error}"
    return None


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Return the content of a checkpoint's manifest.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a JSON object.
    """
    return read_object(checkpoint / MANIFEST)


def put_in_place(draft: Path, final: Path) -> None:
    """Rename a sealed draft to its final name, replacing an earlier checkpoint of that name.

    Files in the earlier folder that its manifest does not list are kept beside the new ones.

    Raises:
        PermissionError: on Windows, another program has a file of the earlier one open. The draft stays.
    """
    earlier = _set_aside(final, REPLACED) if os.path.lexists(final) else None
    draft.rename(final)
    sync(final.parent)
    if earlier is not None:
        _take_apart(earlier, final)


def remove(checkpoint: Path) -> None:
    """Delete the files that a checkpoint's manifest lists, and the folder if nothing else is in it.

    A kill halfway leaves no partial checkpoint under this name, and `recover` completes the removal. A folder without a
    manifest, or a link to a folder, is left alone unless it is empty.

    Raises:
        PermissionError: on Windows, another program has one of the files open. Nothing has changed.
    """
    if not checkpoint.is_symlink() and (checkpoint / MANIFEST).is_file():
        _take_apart(_set_aside(checkpoint, REMOVED), checkpoint)
    elif not _entries(checkpoint):
        checkpoint.rmdir()


def recover(directory: Path) -> None:
    """Complete the removals that a killed run began, and restore a checkpoint that it was about to replace."""
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
    """Move a checkpoint into the folder of unfinished ones, and return its new path."""
    unfinished = checkpoint.parent / UNFINISHED
    unfinished.mkdir(exist_ok=True)
    for earlier in (unfinished / f"{REMOVED}{checkpoint.name}", unfinished / f"{REPLACED}{checkpoint.name}"):
        if os.path.lexists(earlier):
            _recover(earlier, checkpoint.parent)
    return checkpoint.rename(unfinished / f"{prefix}{checkpoint.name}")


def _take_apart(aside: Path, home: Path) -> None:
    """Delete the files of a checkpoint that was set aside, and move all others back to `home`, where it was.

    The manifest is deleted last, so that after a kill it still lists what remains to delete. A file that cannot be
    deleted now is left for `recover`.
    """
    if aside.is_symlink() or not aside.is_dir():  # not written by a run
        aside.rename(_free_name(home))
        return
    with contextlib.suppress(OSError):
        delete_files(aside, {*listed_files(aside), *listed_files(home)} - {MANIFEST})
        (aside / MANIFEST).unlink(missing_ok=True)
        if not _entries(aside):
            aside.rmdir()
        elif not os.path.lexists(home):
            aside.rename(home)
        else:
            _move_into(aside, home)


def _move_into(source: Path, target: Path) -> None:
    """Move the content of a folder into another one, renaming what exists there already."""
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


def listed_files(checkpoint: Path) -> set[str]:
    """Return the files that a checkpoint's manifest lists, and the manifest; nothing if it cannot be read."""
    try:
        return {*paths_inside(read_manifest(checkpoint)["files"]), MANIFEST}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()


def paths_inside(names: Iterable[Any]) -> Iterator[str]:
    """Yield those names that are relative paths and do not leave the directory."""
    for name in names:
        if isinstance(name, str) and name and "\0" not in name:
            path = PurePosixPath(name)
            if not path.is_absolute() and ".." not in path.parts:
                yield name


def delete_files(directory: Path, names: Iterable[str]) -> None:
    """Delete files of a directory, and its folders that become empty. Nothing behind a link is deleted."""
    root, folders = directory.resolve(), set()
    for path in (directory / name for name in names):
        if path.parent.resolve().is_relative_to(root) and (path.is_file() or path.is_symlink()):
            path.unlink()
            folders |= {folder for folder in path.parents if folder.is_relative_to(directory) and folder != directory}
    for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
        with contextlib.suppress(OSError):  # it holds other files
            folder.rmdir()


def _entries(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def replacement(path: Path) -> contextlib.AbstractContextManager[Path]:
    """Open a draft that replaces a file of the output directory atomically. The next run deletes leftover drafts."""
    return replacing(path, path.with_name(path.name + DRAFT_SUFFIX))


def write_text_file(path: Path, content: str) -> None:
    """Write a text file atomically."""
    with replacement(path) as draft:
        draft.write_text(content, encoding="utf-8", newline="\n")


def checksum(path: Path) -> str:
    """Return the sha256 of a file, reading a chunk at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
