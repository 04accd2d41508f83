"""Weights that are packed in the background are those that would be packed later, bit for bit."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import kernels_here, random_model
from preloading import PRECISIONS, assert_same, built, needs_linux, preloaded, start, taken, uneven_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt2tg.checkpoint.checkpoint import read_checkpoint
from gpt2tg.engine import matrix_choice
from gpt2tg.engine.cpu import compiler, kernels, preload
from gpt2tg.engine.cpu.huge_pages import HugePages
from gpt2tg.engine.cpu.preload import Preload, Preloaded
from gpt2tg.engine.cpu.weight_layout import packed_bytes
from gpt2tg.engine.matrices import Panels, Plain
from gpt2tg.generation.generator import load, load_checkpoint
from gpt2tg.options import decoding_options

ROOT = Path(__file__).parents[3]
pytestmark = needs_linux


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def directory(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return uneven_model(tmp_path / "model", tied=request.param)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_all_matrices_are_packed_bit_for_bit(directory: Path, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = built(directory, precision, None)
    found = preloaded(directory, precision)
    assert found.names == {name for name, *_ in read_checkpoint(directory).shape.matrices()}
    monkeypatch.setattr(kernels.load(), "pack_matrix", lambda *_: pytest.fail("packed once more"))
    assert_same(built(directory, precision, found), expected)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_matrices_that_are_late_are_packed_by_the_loader(directory: Path, precision: str) -> None:
    expected = built(directory, precision, None)
    library, count = kernels_here(), len(expected.matrices)
    for done in range(count + 1):

        class Some:
            packed_bytes = library.packed_bytes

            @staticmethod
            def pack_file(matrices: ctypes.Array, count: int, stop: ctypes.c_int32, done: int = done) -> int:
                return library.pack_file(matrices, done, stop)

        begun = Preload(read_checkpoint(directory), precision, Some())  # type: ignore[arg-type]
        begun._thread.join()
        found = taken(begun, directory)
        assert len(found.names) == done
        assert_same(built(directory, precision, found), expected)


def test_take_does_not_wait_for_all_matrices(directory: Path) -> None:
    class Endless:
        packed_bytes = kernels_here().packed_bytes

        @staticmethod
        def pack_file(matrices: ctypes.Array, count: int, stop: ctypes.c_int32) -> int:
            limit = time.monotonic() + 20
            while not stop.value:
                assert time.monotonic() < limit
            return 0

    begun = Preload(read_checkpoint(directory), "fp32", Endless())  # type: ignore[arg-type]
    assert not taken(begun, directory).names


def test_kernel_stops_between_two_matrices() -> None:
    library, stop = kernels_here(), ctypes.c_int32(0)
    content, panels = mmap.mmap(-1, 4 * 64 * 64), torch.empty(64, 64)
    weights = ctypes.addressof(ctypes.c_char.from_buffer(content))
    stored = kernels.UnpackedMatrix(weights, 64, 1, 64, 64, 0, panels.data_ptr(), None)
    many = (kernels.UnpackedMatrix * 10**6)(*[stored] * 10**6)
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(library.pack_file(many, len(many), stop)))
    thread.start()
    stop.value = 1
    thread.join()
    assert done[0] < len(many)


@pytest.mark.parametrize("other", ["int8", "fp16"])
def test_matrices_of_another_precision_are_packed_anew(directory: Path, other: str) -> None:
    assert_same(built(directory, "fp32", preloaded(directory, other)), built(directory, "fp32", None))


def test_preload_is_taken_once_and_by_its_own_checkpoint(directory: Path) -> None:
    checkpoint = read_checkpoint(directory)
    begun = start(directory)
    assert begun.take(replace(checkpoint, directory=directory / "other")) is None
    assert begun.take(checkpoint) is None
    begun = start(directory)
    assert begun.take(checkpoint) is not None
    assert begun.take(checkpoint) is None


def test_one_of_many_threads_gets_the_preload(directory: Path) -> None:
    checkpoint, begun = read_checkpoint(directory), start(directory)
    found: list[Preloaded | None] = []
    threads = [threading.Thread(target=lambda: found.append(begun.take(checkpoint))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert sum(one is not None for one in found) == 1


def test_two_models_are_preloaded_side_by_side(directory: Path) -> None:
    first, second = start(directory, "fp32"), start(directory, "int8")
    for precision, begun in (("int8", second), ("fp32", first)):
        begun._thread.join()
        assert_same(built(directory, precision, taken(begun, directory)), built(directory, precision, None))


def test_load_uses_the_memory_of_the_preload(model_dir: Path) -> None:
    checkpoint, begun = read_checkpoint(model_dir), start(model_dir)
    begun._thread.join()
    span = begun._span
    assert span is not None
    wte = load_checkpoint(checkpoint, "cpu", "fp32", begun).model.matrices["wte"]
    memory = ctypes.addressof(ctypes.c_char.from_buffer(span))
    assert isinstance(wte, Panels)
    assert memory <= wte.panels.data_ptr() < memory + len(span)
    assert begun.take(checkpoint) is None


def test_memory_that_nobody_takes_is_freed(directory: Path) -> None:
    checkpoint = read_checkpoint(directory)
    for wanted in (checkpoint, replace(checkpoint, directory=Path())):
        begun = start(directory)
        assert begun._span is not None
        span = weakref.ref(begun._span)
        begun.take(wanted)
        gc.collect()
        assert span() is None


def test_memory_of_a_dropped_preload_is_freed(directory: Path) -> None:
    begun = start(directory)
    assert begun._span is not None
    span, thread = weakref.ref(begun._span), begun._thread
    del begun
    thread.join()
    gc.collect()
    assert span() is None


def test_memory_is_freed_before_a_model_that_does_not_use_it(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = start(directory)
    assert begun._span is not None
    span = weakref.ref(begun._span)
    gone: list[bool] = []

    def plain(weight: Tensor) -> Plain:
        gone.append(span() is None)
        return Plain(weight)

    monkeypatch.setattr(matrix_choice, "_fastest_in_fp32", lambda *_: plain)
    built(directory, "fp32", taken(begun, directory))
    assert gone
    assert all(gone)


def test_replaced_file_is_packed_anew(directory: Path) -> None:
    begun = start(directory)
    begun._thread.join()
    weights = {name: tensor + 1 for name, tensor in load_file(directory / "model.safetensors").items()}
    save_file(weights, directory / "new", {"format": "pt"})
    (directory / "new").replace(directory / "model.safetensors")
    found = taken(begun, directory)
    assert (found.packed_bytes, found.names) == (0, frozenset())
    assert_same(built(directory, "fp32", found), built(directory, "fp32", None))
    begun = start(directory)
    begun._thread.join()
    (directory / "model.safetensors").unlink()
    found = taken(begun, directory)
    assert not found.names


def test_pipe_in_place_of_the_file_does_not_block(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    os.mkfifo(directory / "model.safetensors")
    begun = start(directory)
    begun._thread.join(20)
    assert not begun._thread.is_alive()
    assert not taken(begun, directory).names


def test_pages_of_the_file_are_freed_in_either_layout(tmp_path: Path) -> None:
    library = kernels_here()
    file = tmp_path / "weights"
    file.write_bytes(bytes(40 * 2**20))
    for strides in ((1, 1024), (10240, 1)):
        content, _ = preload.map_file(file)
        first = ctypes.addressof(ctypes.c_char.from_buffer(content))
        panels = torch.empty(40 * 2**18)
        stored = kernels.UnpackedMatrix(
            first, *strides, 1024, 10240, kernels.PRECISIONS["fp32"], panels.data_ptr(), None
        )
        assert library.pack_file(stored, 1, ctypes.c_int32(0)) == 1
        assert resident_of(file) < 2**20
        assert not panels.any()


HELD = """
import ctypes, re, sys
from pathlib import Path
from gpt2tg.engine import matrix_choice
from gpt2tg.engine.cpu import compiler, kernels, preload
library, (content, _) = kernels.load(), preload.map_file(Path(sys.argv[1]))
first = ctypes.addressof(ctypes.c_char.from_buffer(content))
panels, scale = ctypes.create_string_buffer(25 * 2**20), ctypes.create_string_buffer(4 * 25_600)
places = ctypes.addressof(panels), ctypes.addressof(scale)

def most():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

before = most()
stored = kernels.UnpackedMatrix(first, 1, 1024, 1024, 25_600, kernels.PRECISIONS["int8"], *places)
assert library.pack_file(stored, 1, ctypes.c_int32(0)) == 1
print(most() - before)
"""


def test_peak_memory_holds_part_of_the_embedding_only(tmp_path: Path) -> None:
    kernels_here()
    (tmp_path / "weights").write_bytes(bytes(100 * 2**20))
    command = [sys.executable, "-c", HELD, str(tmp_path / "weights")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert int(done.stdout) < (25 + 25) * 2**20  # the packed matrix, and a quarter of the file


def resident_of(file: Path) -> int:
    """Return the bytes of a mapped file that are in memory."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            inside = line.endswith(str(file))
        elif name == "Rss:" and inside:
            found += 1024 * int(rest[0])
    return found


def test_unreadable_file_prefaults_all_but_the_embedding(tmp_path: Path) -> None:
    model = random_model(n_embd=256, n_head=2, n_layer=4, vocab_size=16_384)
    model.bfloat16().save_pretrained(tmp_path)
    begun = start(tmp_path)
    begun._thread.join()
    assert begun._span is not None
    wanted = 4 * 4 * 12 * 256 * 256
    assert wanted <= resident(begun._span) <= wanted + 2 * 2**21  # memory comes in pages of 2 MB


def resident(span: mmap.mmap) -> int:
    """Return the bytes of a span that are in memory, as the system counts its pages."""
    held = (ctypes.c_ubyte * -(-len(span) // mmap.PAGESIZE))()
    address = ctypes.addressof(ctypes.c_char.from_buffer(span))
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(span)), held) == 0
    return mmap.PAGESIZE * sum(page & 1 for page in held)


def test_prefaulting_stops_before_the_memory_is_used(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill, filled = ctypes.memset, []

    def slowly(first: int, number: int, count: int) -> None:
        filled.append(count)
        time.sleep(0.001)
        fill(first, number, count)

    monkeypatch.setattr(preload, "PIECE", 64)
    monkeypatch.setattr(ctypes, "memset", slowly)
    weights = load_file(directory / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in weights.items()}, directory / "model.safetensors")
    expected = built(directory, "fp32", None)
    found = built(directory, "fp32", taken(start(directory), directory))
    assert sum(filled) < packed_bytes(read_checkpoint(directory).shape, "fp32", kernels_here()) // 2
    time.sleep(0.05)
    assert_same(found, expected)


@pytest.mark.parametrize("refused", ["memory", "thread", "kernels", "threads of torch"])
def test_nothing_is_preloaded_where_the_system_refuses(
    directory: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory") if refused == "memory" else RuntimeError("can't start new thread")

    if refused == "kernels":
        monkeypatch.setattr(kernels, "load", lambda: None)
    elif refused == "threads of torch":
        monkeypatch.setattr(compiler, "openmp_libraries", list)
    else:
        monkeypatch.setattr(*((preload, "mapped") if refused == "memory" else (threading.Thread, "start")), refuse)
    assert Preload.start(read_checkpoint(directory), "fp32") is None


def test_matrix_beyond_the_memory_is_not_taken_for_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    for grant in (True, False):
        memory = HugePages(Preloaded(mmap.mmap(-1, 4096), "fp32", 4096), "fp32")
        memory.empty(1024)
        assert memory.is_packed
        if not grant:
            monkeypatch.setattr(
                "gpt2tg.engine.cpu.huge_pages.mapped", lambda size: (_ for _ in ()).throw(OSError(12, "no"))
            )
        memory.empty(16)
        assert not memory.is_packed


STARTED = """
import gc, sys
from gpt2tg.checkpoint.checkpoint import resolve_checkpoint
from gpt2tg.engine.cpu import kernels, startup
checkpoint = resolve_checkpoint(sys.argv[1])
assert "torch" not in sys.modules
preload = startup.import_torch(checkpoint, "cpu", sys.argv[2])
assert gc.isenabled() and "torch" in sys.modules
preload._thread.join()
kernels.load().pack_matrix = None
from gpt2tg.checkpoint import weights
looked_through = []
weights.is_finite = lambda tensor: looked_through.append(tensor) or True
from gpt2tg.generation.generator import load_checkpoint
from gpt2tg.options import decoding_options
(sample,) = load_checkpoint(checkpoint, "cpu", sys.argv[2], preload).generate(
    "The fox", decoding_options(dict(decoding="greedy", max_new_tokens=20))
)
print(len(looked_through), *sample.ids)
"""


@pytest.mark.parametrize("precision", PRECISIONS)
def test_model_is_packed_while_torch_is_imported(model_dir: Path, precision: str) -> None:
    kernels_here()
    command = [sys.executable, "-W", "error", "-c", STARTED, str(model_dir), precision]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    options = decoding_options(dict(decoding="greedy", max_new_tokens=20))
    (sample,) = load(str(model_dir), "cpu", precision=precision).generate("The fox", options)
    shape = read_checkpoint(model_dir).shape
    others = len(list(shape.tensors())) - len(list(shape.matrices()))
    assert [int(number) for number in done.stdout.split()] == [others, *sample.ids]
