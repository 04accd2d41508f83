"""Give the machines of a run without a common disk the checkpoint to resume from. Only the first one saves any."""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import Iterator
from pathlib import Path

from gpt2tg.checkpoint.runs import MANIFEST
from gpt2tg.errors import RunError, UserError
from gpt2tg.io.processes import local_number
from gpt2tg.training.output.durable import UNFINISHED, find_damage, put_in_place, read_manifest, remove
from gpt2tg.training.processes import gather, run_on_main_process

# The size of the pieces in which files are sent.
PIECE_BYTES = 1 << 26


@contextlib.contextmanager
def on_every_machine(checkpoint: Path | None) -> Iterator[None]:
    """Copy a checkpoint to the machines that lack it, and remove the copies after the block.

    All processes must use this together. Does nothing if all see the same directory.

    Raises:
        UserError: in every process, if a machine has another checkpoint of that name.
    """
    if checkpoint is None:
        yield
        return
    manifest = run_on_main_process((checkpoint / MANIFEST).read_bytes)
    is_there = checkpoint.exists()
    is_other = is_there and not _has_manifest(checkpoint, manifest)
    if others := [name for name in gather(socket.gethostname() if is_other else None) if name is not None]:
        raise UserError(
            f"{checkpoint} on the machine {others[0]} is not that of the first machine: move it away, or choose "
            "another --output_dir",
            "resume",
        )
    keeps_copy = not is_there and local_number() == 0
    if not all(gather(is_there)):
        _send(checkpoint, keeps_copy)
        gather(None)  # the others on a machine wait for its copy
    try:
        yield
    finally:
        if keeps_copy:
            remove(checkpoint)
            with contextlib.suppress(OSError):  # not empty
                (checkpoint.parent / UNFINISHED).rmdir()


def _has_manifest(checkpoint: Path, manifest: bytes) -> bool:
    path = checkpoint / MANIFEST
    return path.is_file() and path.read_bytes() == manifest


def _send(checkpoint: Path, keeps_copy: bool) -> None:
    """Send the files of a checkpoint from the first process to all; those with `keeps_copy` write them."""
    draft = checkpoint.parent / UNFINISHED / checkpoint.name
    for name in run_on_main_process(lambda: [*read_manifest(checkpoint)["files"], MANIFEST]):
        with contextlib.ExitStack() as stack:
            if keeps_copy:
                (draft / name).parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context((draft / name).open("wb"))
            position = 0
            while piece := run_on_main_process(functools.partial(_piece, checkpoint / name, position)):
                position += len(piece)
                if keeps_copy:
                    file.write(piece)
    if keeps_copy:
        if fault := find_damage(draft):
            raise RunError(f"{checkpoint} arrived damaged on {socket.gethostname()}: {fault}; start again")
        put_in_place(draft, checkpoint)


def _piece(path: Path, position: int) -> bytes:
    with path.open("rb") as file:
        file.seek(position)
        return file.read(PIECE_BYTES)
