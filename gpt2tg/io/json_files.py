"""Read JSON files that hold an object, such as config.json and the manifest of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpt2tg.errors import UserError
from gpt2tg.io.lfs import begins_pointer, refuse_pointer


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8, not JSON, a Git LFS pointer, or holds something other than an object.
    """
    data = path.read_bytes()
    if begins_pointer(data):
        raise ValueError("it is a Git LFS pointer, not the file itself: run git lfs pull")
    try:
        content = json.loads(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a model.

    Raises:
        UserError: the file is missing, or holds no JSON object.
    """
    refuse_pointer(path)
    try:
        return read_object(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the model is incomplete") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is no valid JSON: {error}") from None
