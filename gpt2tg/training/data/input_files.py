"""Find the text files that a name stands for: a file, a pattern, or a folder with its subfolders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from glob import has_magic, iglob
from pathlib import Path

from gpt2tg.checkpoint.file_names import ADAPTER_CONFIG, VOCABULARY_FILES, WEIGHT_FILES
from gpt2tg.checkpoint.runs import LOG_FILE
from gpt2tg.errors import UserError
from gpt2tg.reading.compressed import COMPRESSION_SUFFIXES, compression, text_suffix
from gpt2tg.reading.file_types import BINARY_TABLE_SUFFIXES, LINE_TABLE_SUFFIXES, is_binary_table
from gpt2tg.reading.table_row import Notify
from gpt2tg.training.output.layout import is_ours

# What is read from a folder, the first ones also compressed. A file that the user names is read whatever its suffix.
# A .json in a folder may be anything.
TEXT_SUFFIXES = (".txt", ".md", *LINE_TABLE_SUFFIXES)
READ_SUFFIXES = (*TEXT_SUFFIXES, *BINARY_TABLE_SUFFIXES)

# Endings that editors give to backup copies, before the suffix or after it.
BACKUP_ENDINGS = ("~", ".bak", ".orig", ".swp", ".swo")

# Folders that programs make. Those with a hidden name are skipped anyway.
PROGRAM_FOLDERS = ("__pycache__", "__MACOSX", "node_modules", "site-packages")

# Files that mark a folder as a model or a virtual environment, whose texts are not the user's.
MODEL_FILES = (*WEIGHT_FILES, ADAPTER_CONFIG, *VOCABULARY_FILES)
ENVIRONMENT_FILE = "pyvenv.cfg"


def _ignore(notice: str) -> None:
    pass


def find_files(
    names: tuple[str, ...], option: str, output: Path | None = None, notify: Notify = _ignore
) -> tuple[Path, ...]:
    """Return the files that the names stand for, each once, in the order of the names.

    Args:
        option: the flag that gave the names, for errors.
        output: a directory to leave out if it lies in one of the folders.
        notify: called with each notice on files that are skipped.

    Raises:
        UserError: a name stands for no file.
    """
    files: dict[tuple[int, int], Path] = {}
    for path in (path for name in names for path in _files_of(name, option, output, notify)):
        status = path.stat()
        known = files.setdefault((status.st_dev, status.st_ino), path)
        if known is not path:
            notify(f"{path} is read once, as {known}" if str(path) != str(known) else f"{path} is read once")
    return tuple(files.values())


def _files_of(name: str, option: str, output: Path | None, notify: Notify) -> list[Path]:
    path = Path(name).expanduser()
    if path.is_dir():
        return _in_folder(path, option, output, notify)
    if not path.exists() and has_magic(name):
        return _matching(name, path, option, output, notify)
    if not path.exists():
        raise UserError(f"{path} does not exist: give the path of a text file", option)
    if not path.is_file():
        raise UserError(f"{path} is a pipe or a device, but the text is read twice: save it to a file first", option)
    return [path]


def _in_folder(folder: Path, option: str, output: Path | None, notify: Notify) -> list[Path]:
    """Return the text files in a folder and its subfolders, sorted."""
    if is_ours(folder):
        raise UserError(
            f"{folder} is the output directory of a training run: give the folder of your own texts", option
        )
    texts: list[Path] = []
    others: list[Path] = []
    for path in _walk(folder, option, output, notify):
        (texts if _is_text(path) else others).append(path)
    suffixes = f"({', '.join(READ_SUFFIXES)}; text also with {', '.join(COMPRESSION_SUFFIXES)})"
    if not texts:
        raise UserError(f"{folder} is a directory without a text file {suffixes}", option)
    if others:
        endings = sorted({path.suffix.lower() or path.name for path in others})
        is_or_are = "is" if len(others) == 1 else "are"
        shown = ", ".join(endings[:5]) + (", ..." if len(endings) > 5 else "")
        notify(f"{folder}: skipped {_counted(len(others))} that {is_or_are} not text {suffixes}: {shown}")
    return sorted(texts)


def _is_text(path: Path) -> bool:
    """Whether a file in a folder is read."""
    return is_binary_table(path) or text_suffix(path) in TEXT_SUFFIXES


def _walk(folder: Path, option: str, output: Path | None, notify: Notify) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders, except hidden files, backups, and the output of runs."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}", option)

    backups = 0
    for place, folders, names in os.walk(folder, onerror=refuse):
        here = Path(place)
        kept = [name for name in folders if not name.startswith(".") and not _is_foreign(here / name, output, notify)]
        folders[:] = sorted(kept)
        for path in (here / name for name in sorted(names) if not name.startswith(".")):
            if is_backup(path):
                backups += 1
            elif path.is_file():
                yield path
            elif path.is_symlink() and not path.exists():
                notify(f"skipped {path}: a link to a missing file")
    if backups:
        notify(f"{folder}: skipped {_counted(backups)} named like a backup")


def _matching(name: str, pattern: Path, option: str, output: Path | None, notify: Notify) -> list[Path]:
    """Return the files that match a pattern, without backups and the output of runs if any other file matches."""
    fixed = Path(*_before_magic(pattern))
    matches = sorted(path for path in map(Path, iglob(str(pattern), recursive=True)) if path.is_file())
    if not matches:
        raise UserError(f"{name} matches no file: check the pattern", option)
    foreign = {
        folder: _is_foreign(folder, output, notify)
        for folder in dict.fromkeys(parent for path in matches for parent in path.parents if fixed in parent.parents)
    }
    texts = [path for path in matches if not is_backup(path) and not any(map(foreign.get, path.parents))]
    if texts and (backups := sum(map(is_backup, matches))):
        notify(f"{name}: skipped {_counted(backups)} named like a backup")
    return texts or matches


def _before_magic(pattern: Path) -> list[str]:
    """Return the parts of a path before the first with a wildcard."""
    parts = list(pattern.parts)
    return parts[: next(number for number, part in enumerate(parts) if has_magic(part))]


def _is_foreign(folder: Path, output: Path | None, notify: Notify) -> bool:
    """Whether the texts in a folder are not the user's. Skipped runs and models are reported, program folders not."""
    if folder.name in PROGRAM_FOLDERS or (folder / ENVIRONMENT_FILE).exists():
        return True
    is_output = output is not None and output.exists() and folder.exists() and folder.samefile(output)
    # A run that was cut short, or copied in part, may have left only its log.
    if is_output or is_ours(folder) or _holds_model(folder) or (folder / LOG_FILE).exists():
        notify(f"skipped {folder}: {'the output directory' if is_output else 'it holds a run or a model'}")
        return True
    return False


def _holds_model(folder: Path) -> bool:
    return (folder / "config.json").exists() and any((folder / name).exists() for name in MODEL_FILES)


def is_backup(path: Path) -> bool:
    """Whether a file is named like a backup copy of an editor."""
    name = path.name.lower()
    name = name.removesuffix(compression(path))
    stem = name.removesuffix(text_suffix(path))
    is_marked = name.startswith("~$") or (name.startswith("#") and name.endswith("#"))
    return is_marked or name.endswith(BACKUP_ENDINGS) or stem.endswith(BACKUP_ENDINGS)


def _counted(number: int) -> str:
    return "1 file" if number == 1 else f"{number:,} files"
