"""Checkpoints that are whole or not there, whatever happens while they are written or removed.

A checkpoint is written into a folder of another name, synced to the disk with a manifest of its files, and only then
given its name. One that is to go loses its name first.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from gpt2tg.engine.runs import MANIFEST, read_object

# In the output directory: what is being written, and what is being removed.
UNFINISHED = ".unfinished"

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
    """Give a sealed checkpoint its name; what bore it before is removed afterwards."""
    before = _set_aside(final) if final.exists() else None
    draft.rename(final)
    sync(final.parent)
    if before is not None:
        shutil.rmtree(before, ignore_errors=True)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint; a kill in between leaves no half of it under its name."""
    shutil.rmtree(_set_aside(checkpoint), ignore_errors=True)


def _set_aside(checkpoint: Path) -> Path:
    directory = checkpoint.parent / UNFINISHED
    directory.mkdir(exist_ok=True)
    aside = directory / f"removed-{checkpoint.name}"
    shutil.rmtree(aside, ignore_errors=True)
    return checkpoint.rename(aside)


def write_whole(path: Path, content: str) -> None:
    """Write a text file whole or not at all."""
    draft = path.with_name(f"{path.name}.tmp")
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
    """Have the system write a file or a folder to the disk now. Windows syncs no folders."""
    if path.is_dir():
        if os.name == "nt":
            return
        descriptor = os.open(path, os.O_RDONLY)
    else:
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
