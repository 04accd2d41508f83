"""The output directory of an export: never half-written, and no file overwritten without --overwrite."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from gpt2tg.checkpoint.file_names import ADAPTER_CONFIG, ADAPTER_PICKLE, ADAPTER_WEIGHTS, TOKENIZER_FILES, WEIGHT_FILES
from gpt2tg.errors import UserError
from gpt2tg.io.atomic import sync

# Files of another model that would contradict the new one.
CONTRADICTING = (*TOKENIZER_FILES, *WEIGHT_FILES, ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_PICKLE)

# Suffixes of files with weights. They are put in place last: a directory without them is refused as incomplete.
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf")


# The folder in which the files are written. A kill leaves it behind, and the next export removes it.
DRAFT = ".export.partial"


def check_unused(directory: Path, overwrite: bool) -> None:
    """Check that a directory is missing or empty, or may be written to.

    Raises:
        UserError: it holds files, and `overwrite` is off.
    """
    found = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    if not overwrite and found - {DRAFT}:
        raise UserError(
            f"{directory} is not empty: choose another, or replace the files of the same names with --overwrite",
            "output_dir",
        )


@contextlib.contextmanager
def filling(directory: Path, replaces_model: bool = False) -> Iterator[Path]:
    """Yield a folder to write files into; when the block ends, they are synced and moved into the directory.

    The weights are moved last. If the block raises, nothing is moved, and a directory that is new is removed.

    Args:
        replaces_model: whether the files are a model's, so that other weights and tokenizers there are removed.
    """
    is_new = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    draft = directory / DRAFT
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir()
        yield draft
        _move(draft, directory, CONTRADICTING if replaces_model else ())
        draft.rmdir()
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        if is_new:
            with contextlib.suppress(OSError):  # it holds what another program wrote meanwhile
                directory.rmdir()
        raise


def _move(draft: Path, directory: Path, contradicting: tuple[str, ...]) -> None:
    files = sorted(draft.iterdir(), key=lambda file: (file.suffix in WEIGHT_SUFFIXES, file.name))
    umask = os.umask(0)
    os.umask(umask)
    for file in files:
        file.chmod(0o666 & ~umask)  # safetensors makes weights readable to their owner alone
        sync(file)
    for name in {*contradicting} - {file.name for file in files}:
        (directory / name).unlink(missing_ok=True)
    for file in files:
        file.replace(directory / file.name)
    sync(directory)
