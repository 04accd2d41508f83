"""Machines of a run that have no common disk: two forks, each in a working directory of its own."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
import torch.distributed

from gpt2tg.errors import UserError
from gpt2tg.training.output.durable import seal
from gpt2tg.training.output.machines import on_every_machine

CHECKPOINT = Path("out", "checkpoint-3")


def write_checkpoint(directory: Path, content: bytes) -> Path:
    path = directory / CHECKPOINT
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(content)
    (path / "empty").touch()
    seal(path, {"step": 3})
    return path


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()} if directory.exists() else {}


def _machine(rank: int, place: Path, expected: dict[str, bytes]) -> None:
    """Exit with 0 if the checkpoint is there inside the block, 2 if it is refused."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    torch.distributed.init_process_group("gloo", f"file://{place / 'meeting'}", rank=rank, world_size=2)
    os.chdir(place / str(rank))
    try:
        with on_every_machine(CHECKPOINT):
            code = int(files(CHECKPOINT) != expected)
    except UserError as error:
        code = 2 if "is not that of the first machine" in str(error) else 3
    os._exit(code)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("other", "code"), [(None, 0), (b"other weights", 2)])
def test_machine_without_the_checkpoint_gets_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: bytes | None, code: int
) -> None:
    """It is gone after the run. A checkpoint of another run is refused, in both processes, and stays."""
    monkeypatch.setattr("gpt2tg.training.output.machines.PIECE_BYTES", 7)
    expected = files(write_checkpoint(tmp_path / "0", b"the weights of a model"))
    before = files(write_checkpoint(tmp_path / "1", other)) if other else {}
    (tmp_path / "1").mkdir(exist_ok=True)
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_machine, args=(rank, tmp_path, expected)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [code, code]
    assert files(tmp_path / "0" / CHECKPOINT) == expected
    assert files(tmp_path / "1" / CHECKPOINT) == before
