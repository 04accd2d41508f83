"""The ways a run fails: a loss that is not finite, and a disk that cannot be written to."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from gpt2tg.checkpoint.runs import saved_checkpoints
from gpt2tg.errors import RunError, one_line

# Part of torch's message when it cannot write a file: it raises a plain RuntimeError.
TORCH_WRITER = "inline_container"


class NotFinite(RunError):
    """A loss or a weight that is infinite or NaN."""

    def __init__(self, value: str, step: int) -> None:
        super().__init__(
            f"the {value} is not finite at step {step}, and no checkpoint holds it: "
            "lower --learning_rate, or use --bf16 instead of --fp16"
        )


@contextlib.contextmanager
def explain_disk_errors(directory: Path) -> Iterator[None]:
    """Turn the errors that libraries raise when they cannot write into a RunError with cause and remedy."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and (isinstance(error, RunError) or TORCH_WRITER not in str(error)):
            raise
        free = f" ({shutil.disk_usage(directory).free / 1e9:.2f} GB free)" if directory.is_dir() else ""
        cause = "a file could not be written completely" if isinstance(error, RuntimeError) else one_line(error)
        remedy = "earlier checkpoints are intact, continue from them with --resume"
        if not saved_checkpoints(directory):
            remedy = "nothing was saved yet, start again with --overwrite"
        raise RunError(f"cannot write to {directory}{free}: {cause}; {remedy} after freeing disk space") from None
