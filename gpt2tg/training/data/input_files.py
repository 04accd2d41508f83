"""Which files a name means: a file, a pattern, or a folder without what nobody meant to be read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from glob import has_magic, iglob
from pathlib import Path

from gpt2tg.checkpoint.hub import ADAPTER_CONFIG, VOCABULARY_FILES, WEIGHT_FILES
from gpt2tg.checkpoint.runs import LOG_FILE
from gpt2tg.errors import UserError
from gpt2tg.reading.file_types import TABLE_SUFFIXES
from gpt2tg.training.output.directory import is_ours

# What is taken from a folder; a file that is named is read whatever its name.
TEXT_SUFFIXES = (".txt", ".md", *TABLE_SUFFIXES)

# How editors call copies of a file, before its suffix or at its end.
BACKUP_ENDINGS = ("~", ".bak", ".orig", ".swp", ".swo")

# Folders of programs; those with a hidden name are left out anyway.
PROGRAM_FOLDERS = ("__pycache__", "__MACOSX", "node_modules", "site-packages")

# Files of which one makes a folder that of a model or of a virtual environment: their texts are not the user's.
MODEL_FILES = (*WEIGHT_FILES, ADAPTER_CONFIG, *VOCABULARY_FILES)
ENVIRONMENT_FILE = "pyvenv.cfg"

Say = Callable[[str], None]


def find_files(
    names: tuple[str, ...], option: str, output: Path | None = None, say: Say = lambda _: None
) -> tuple[Path, ...]:
    """The files that names mean, each once, in the order of the names.

    Args:
        output: a directory of which nothing is read, where it lies in a folder that is named.
        say: takes a line on what is passed over.

    Raises:
        UserError: a name that means no file.
    """
    found: dict[tuple[int, int], Path] = {}
    for path in (path for name in names for path in _named(name, option, output, say)):
        status = path.stat()
        known = found.setdefault((status.st_dev, status.st_ino), path)
        if known is not path:
            say(f"{path} is read once, as {known}" if str(path) != str(known) else f"{path} is read once")
    return tuple(found.values())


def _named(name: str, option: str, output: Path | None, say: Say) -> list[Path]:
    path = Path(name).expanduser()
    if path.is_dir():
        return _in_folder(path, option, output, say)
    if not path.exists() and has_magic(name):
        return _matching(name, path, option, output, say)
    if not path.exists():
        raise UserError(f"{path} does not exist: give the path of a text file", option)
    if not path.is_file():
        raise UserError(f"{path} is a pipe or a device, which can be read but once: save it to a file first", option)
    return [path]


def _in_folder(folder: Path, option: str, output: Path | None, say: Say) -> list[Path]:
    """The texts in a folder and below."""
    if is_ours(folder):
        raise UserError(f"{folder} is the directory of a training run: its texts are not yours to train on", option)
    found, other = [], []
    for path in _walk(folder, option, output, say):
        (found if path.suffix.lower() in TEXT_SUFFIXES else other).append(path)
    kinds = f"({', '.join(TEXT_SUFFIXES)})"
    if not found:
        raise UserError(f"{folder} is a directory without a text file {kinds}", option)
    if other:
        endings = sorted({path.suffix.lower() or path.name for path in other})
        shown = ", ".join(endings[:5]) + (", ..." if len(endings) > 5 else "")
        say(f"{folder}: {_counted(len(other))} passed over, which are none of {kinds}: {shown}")
    return sorted(found)


def _walk(folder: Path, option: str, output: Path | None, say: Say) -> Iterator[Path]:
    """The files in a folder and below, without those that nobody means: hidden ones, backups, what runs have made."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}", option)

    backups = 0
    for place, folders, names in os.walk(folder, onerror=refuse):
        here = Path(place)
        kept = [name for name in folders if not name.startswith(".") and not _is_foreign(here / name, output, say)]
        folders[:] = sorted(kept)
        for path in (here / name for name in sorted(names) if not name.startswith(".")):
            if is_backup(path):
                backups += 1
            elif path.is_file():
                yield path
            elif path.is_symlink() and not path.exists():
                say(f"{path} passed over: a link to a file that is not there")
    if backups:
        say(f"{folder}: {_counted(backups)} passed over, by the name a backup")


def _matching(name: str, pattern: Path, option: str, output: Path | None, say: Say) -> list[Path]:
    """The files that match a pattern. Backups and what runs have made count where nothing else matches."""
    fixed = Path(*_before_magic(pattern))
    every = sorted(path for path in map(Path, iglob(str(pattern), recursive=True)) if path.is_file())
    if not every:
        raise UserError(f"{name} matches no file", option)
    foreign = {
        folder: _is_foreign(folder, output, say)
        for folder in dict.fromkeys(parent for path in every for parent in path.parents if fixed in parent.parents)
    }
    found = [path for path in every if not is_backup(path) and not any(map(foreign.get, path.parents))]
    if found and (backups := sum(map(is_backup, every))):
        say(f"{name}: {_counted(backups)} passed over, by the name a backup")
    return found or every


def _before_magic(pattern: Path) -> list[str]:
    parts = list(pattern.parts)
    return parts[: next(number for number, part in enumerate(parts) if has_magic(part))]


def _is_foreign(folder: Path, output: Path | None, say: Say) -> bool:
    """Whether the texts of a folder are not the user's; those of runs and models are told."""
    if folder.name in PROGRAM_FOLDERS or (folder / ENVIRONMENT_FILE).exists():
        return True
    is_output = output is not None and output.exists() and folder.exists() and folder.samefile(output)
    # The log of a run tells of one that was cut short, or copied in part.
    if is_output or is_ours(folder) or _holds_model(folder) or (folder / LOG_FILE).exists():
        say(f"{folder} passed over: {'the output directory' if is_output else 'it holds a run or a model'}")
        return True
    return False


def _holds_model(folder: Path) -> bool:
    return (folder / "config.json").exists() and any((folder / name).exists() for name in MODEL_FILES)


def is_backup(path: Path) -> bool:
    """Whether a file is called like a copy that an editor has left."""
    name = path.name.lower()
    before = name.removesuffix(path.suffix.lower())
    is_marked = name.startswith("~$") or (name.startswith("#") and name.endswith("#"))
    return is_marked or name.endswith(BACKUP_ENDINGS) or before.endswith(BACKUP_ENDINGS)


def _counted(number: int) -> str:
    return "1 file" if number == 1 else f"{number:,} files"
