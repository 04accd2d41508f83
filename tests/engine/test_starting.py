"""What is made ready while torch is imported."""

from __future__ import annotations

import json
import mmap
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import kernels_here

from gpt2tg.engine import kernels, pages, starting
from gpt2tg.engine.checkpoints import BUNDLED_DIRECTORY, read_shape
from gpt2tg.engine.linear import Panels
from gpt2tg.errors import UserError
from gpt2tg.generation import load

ROOT = Path(__file__).parents[2]
Filled = list[tuple[int, int]]


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> Filled:
    """Bytes that are asked for and filled, on a machine that has kernels and no GPU."""
    sizes: Filled = []
    monkeypatch.setattr(pages, "fill_ahead", lambda size, filled: sizes.append((size, filled)))
    monkeypatch.setattr(kernels, "were_compiled", lambda: True)
    monkeypatch.setattr(starting, "ACCELERATORS", ())
    return sizes


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_memory_is_what_the_matrices_take(filled: Filled, precision: str) -> None:
    kernels_here()
    starting.fill_for(str(BUNDLED_DIRECTORY), "model_path", "auto", precision)
    matrices = load(str(BUNDLED_DIRECTORY), precision=precision).model.matrices.values()
    held = sum(matrix.panels.nbytes for matrix in matrices if isinstance(matrix, Panels))
    ((asked, written),) = filled
    assert held <= asked <= 1.01 * held
    embedding = 4 * read_shape(BUNDLED_DIRECTORY).vocab_size * read_shape(BUNDLED_DIRECTORY).n_embd
    assert 0 <= written <= max(held - embedding, 0)  # the file's part is in memory at that time


def test_nothing_is_filled_where_it_would_be_for_nothing(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = str(BUNDLED_DIRECTORY)
    for name, device in (("some-name/of-the-hub", "auto"), ("gpt2", "auto"), (bundled, "cuda"), (bundled, "mps")):
        starting.fill_for(name, "model_path", device, "fp32")
    monkeypatch.setattr(starting, "ACCELERATORS", (bundled,))  # something that is there
    starting.fill_for(bundled, "model_path", "auto", "fp32")
    assert not filled
    starting.fill_for(bundled, "model_path", "cpu", "fp32")
    assert len(filled) == 1
    monkeypatch.setattr(kernels, "were_compiled", lambda: False)
    starting.fill_for(bundled, "model_path", "cpu", "fp32")
    assert len(filled) == 1


def test_a_directory_without_a_model_is_refused_before_torch_is_imported(filled: Filled, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no model") as caught:
        starting.fill_for(str(tmp_path), "model_path", "auto", "fp32")
    assert caught.value.option == "model_path"
    assert not filled


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "x" * 300, "x\0y", "no-such-directory"], ids=repr)
def test_a_name_that_is_no_directory_is_left_to_who_looks_for_models(filled: Filled, name: str) -> None:
    starting.fill_for(name, "model_path", "cpu", "fp32")
    assert not filled


@pytest.mark.parametrize(
    "change",
    [{"vocab_size": 4_000_000, "n_embd": 4096}, {"n_layer": 512, "n_embd": 4096, "n_head": 8}, {"n_inner": 200_000}],
    ids=str,
)
def test_nothing_is_filled_for_a_model_that_its_files_cannot_hold(
    filled: Filled, model_dir: Path, tmp_path: Path, change: dict[str, int]
) -> None:
    directory = shutil.copytree(model_dir, tmp_path / "model")
    starting.fill_for(str(directory), "model_path", "cpu", "fp32")
    assert len(filled) == 1
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(json.dumps({**config, **change}), encoding="utf-8")
    starting.fill_for(str(directory), "model_path", "cpu", "fp32")
    assert len(filled) == 1


def test_a_thread_that_is_not_granted_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    pages.fill_ahead(2**20, filled=2**20)
    assert pages.filled_ahead() is None


STARTED = """
import gc, sys
from gpt2tg.engine import starting
starting.import_torch(sys.argv[1], "model_path", "cpu", "fp32")
assert gc.isenabled() and "torch" in sys.modules
from gpt2tg.engine import pages
span = pages.filled_ahead()
print(0 if span is None else len(span))
"""


def test_torch_is_imported_and_memory_filled_meanwhile() -> None:
    kernels_here()
    command = [sys.executable, "-c", STARTED, str(BUNDLED_DIRECTORY)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    has_none = not hasattr(mmap, "MADV_HUGEPAGE")
    assert (int(done.stdout) == 0) is has_none


def test_kernels_were_compiled_where_a_file_of_them_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kernels.SWITCH, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not kernels.were_compiled()
    shutil.copy(__file__, tmp_path / "gpt2tg" / "kernels-0123.so")
    assert kernels.were_compiled() is not kernels.is_off()
    monkeypatch.setenv(kernels.SWITCH, "0")
    assert not kernels.were_compiled()
