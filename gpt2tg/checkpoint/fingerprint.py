"""Tell whether two models have the same weights, without reading all of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from gpt2tg.checkpoint.adapters import adapter_file, is_adapter
from gpt2tg.checkpoint.checkpoint import Checkpoint
from gpt2tg.checkpoint.weight_files import find_weights

# Training changes nearly all weights, so that a few pieces of each file tell two models apart.
PIECES, PIECE_BYTES = 64, 4096


def weights_fingerprint(checkpoint: Checkpoint) -> str:
    """Return a digest of the size and of evenly spaced pieces of each weight file, those of an adapter's base included.

    Raises:
        OSError: a file cannot be read.
        UserError: a file is missing.
    """
    digest = hashlib.sha256()
    part: Checkpoint | None = checkpoint
    while part is not None:
        for file in _files(part.directory):
            size = file.stat().st_size
            digest.update(size.to_bytes(8, "little"))
            with file.open("rb") as content:
                for number in range(PIECES):
                    content.seek(size * number // PIECES)
                    digest.update(content.read(PIECE_BYTES))
        part = part.base
    return digest.hexdigest()


def _files(directory: Path) -> list[Path]:
    return [adapter_file(directory)] if is_adapter(directory) else find_weights(directory).files
