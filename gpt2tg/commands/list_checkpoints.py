"""List the checkpoints of a training run."""

from __future__ import annotations

from gpt2tg.checkpoint.runs import listing
from gpt2tg.io.processes import require_single_process


def list_checkpoints(name: str, option: str) -> None:
    """Print step and validation loss of each checkpoint of a run, and which is the best.

    Args:
        name: the output directory, which was written after the flag `option`.

    Raises:
        UserError: the directory holds neither a checkpoint nor a model.
    """
    require_single_process("is for", "list")
    print(listing(name, option))
