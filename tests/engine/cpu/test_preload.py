"""What is made ready while torch is imported is what would be made after it."""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import kernels_here, random_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt2tg.checkpoint.find import BUNDLED_DIRECTORY, read_shape
from gpt2tg.checkpoint.weights import stream_weights
from gpt2tg.engine import matrix_choice
from gpt2tg.engine.contexts import new_context
from gpt2tg.engine.cpu import compiler, kernels, preload
from gpt2tg.engine.cpu.huge_pages import HugePages
from gpt2tg.engine.matrices import Panels, Plain
from gpt2tg.engine.model import GPT2
from gpt2tg.errors import UserError
from gpt2tg.generation.generator import load
from gpt2tg.options import decoding_options

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
PRECISIONS = ("fp32", "fp16", "int8")

pytestmark = pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="models are made ready on Linux alone")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Whatever a test leaves ready is given back."""
    yield
    preload.end(Path())


@pytest.fixture(params=[True, False], ids=["tied", "with a head of its own"])
def directory(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A model of sizes that fill no panel, in fp32."""
    model = random_model(n_embd=20, n_head=2, n_layer=3, vocab_size=301, tie_word_embeddings=request.param)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def begin(directory: Path, precision: str = "fp32") -> preload.Ahead:
    """Begin to make a model ready."""
    kernels_here()
    preload.begin(directory, read_shape(directory), precision)
    assert preload._ahead is not None
    return preload._ahead


def made(directory: Path, precision: str, ready: preload.Ready | None) -> GPT2:
    """A model of what is ready, and of its files."""
    shape = read_shape(directory)
    return GPT2(stream_weights(directory, shape, ready.names if ready else ()), shape, CPU, precision, ready)


def numbers(model: GPT2) -> dict[str, tuple[Tensor, Tensor | None]]:
    """What each matrix holds."""
    assert all(isinstance(matrix, Panels) for matrix in model.matrices.values())
    return {name: (matrix.panels.clone(), matrix.scale) for name, matrix in model.matrices.items()}  # type: ignore[attr-defined]


def assert_same(found: GPT2, expected: GPT2) -> None:
    ours, theirs = numbers(found), numbers(expected)
    assert ours.keys() == theirs.keys()
    for name, (panels, scale) in theirs.items():
        assert torch.equal(ours[name][0], panels), name
        assert (scale is None) is (ours[name][1] is None)
        assert scale is None or torch.equal(ours[name][1], scale), name
    ids = [[5, 80, 7, 33, 12]]
    assert torch.equal(new_context(found, 16).start(ids), new_context(expected, 16).start(ids))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_all_is_laid_out_and_to_the_bit(directory: Path, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = made(directory, precision, None)
    begin(directory, precision)._thread.join()
    ready = preload.end(directory)
    assert ready is not None
    assert ready.names == {name for name, *_ in read_shape(directory).matrices()}
    monkeypatch.setattr(kernels.load(), "pack_matrix", lambda *_: pytest.fail("laid out once more"))
    assert_same(made(directory, precision, ready), expected)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_not_done_when_it_is_asked_for_is_laid_out_then(directory: Path, precision: str) -> None:
    """After any number of the matrices."""
    expected = made(directory, precision, None)
    library, count = kernels_here(), len(expected.matrices)
    for done in range(count + 1):

        class Some:
            panel = library.panel

            @staticmethod
            def pack_file(matrices: ctypes.Array, count: int, stop: ctypes.c_int32, done: int = done) -> int:
                return library.pack_file(matrices, done, stop)

        begun = preload.Ahead(directory, read_shape(directory), precision, Some())  # type: ignore[arg-type]
        begun._thread.join()
        ready = begun.end()
        assert len(ready.names) == done
        assert_same(made(directory, precision, ready), expected)


def test_who_asks_does_not_wait_for_the_rest(directory: Path) -> None:
    class Endless:
        panel = kernels_here().panel

        @staticmethod
        def pack_file(matrices: ctypes.Array, count: int, stop: ctypes.c_int32) -> int:
            limit = time.monotonic() + 20
            while not stop.value:
                assert time.monotonic() < limit
            return 0

    assert not preload.Ahead(directory, read_shape(directory), "fp32", Endless()).end().names  # type: ignore[arg-type]


def test_it_ends_when_it_is_told() -> None:
    """Of matrices without end."""
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


@pytest.mark.parametrize("begun_in", ["int8", "fp16"])
def test_another_precision_than_the_one_made_ready_is_laid_out_anew(directory: Path, begun_in: str) -> None:
    begin(directory, begun_in)._thread.join()
    assert_same(made(directory, "fp32", preload.end(directory)), made(directory, "fp32", None))


def test_what_is_ready_is_for_one_model_and_once(directory: Path) -> None:
    begin(directory)
    assert preload.end(directory / "other") is None
    assert preload.end(directory) is None
    begin(directory)
    assert preload.end(directory) is not None
    assert preload.end(directory) is None


def test_what_is_not_wanted_is_given_back(directory: Path) -> None:
    for wanted in (directory, Path()):
        span = weakref.ref(begin(directory)._span)
        preload.end(wanted)
        gc.collect()
        assert span() is None


def test_memory_is_given_back_before_a_model_is_made_that_does_not_lie_in_it(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    span = weakref.ref(begin(directory)._span)
    gone: list[bool] = []

    def plain(weight: Tensor) -> Plain:
        gone.append(span() is None)
        return Plain(weight)

    monkeypatch.setattr(matrix_choice, "_fastest_in_fp32", lambda *_: plain)
    ready = preload.end(directory)
    made(directory, "fp32", ready)
    assert gone
    assert all(gone)


def test_a_file_that_took_the_place_of_the_one_that_was_read(directory: Path) -> None:
    begin(directory)._thread.join()
    weights = {name: tensor + 1 for name, tensor in load_file(directory / "model.safetensors").items()}
    save_file(weights, directory / "new", {"format": "pt"})
    (directory / "new").replace(directory / "model.safetensors")
    ready = preload.end(directory)
    assert ready is not None
    assert (ready.laid_out, ready.names) == (0, frozenset())
    assert_same(made(directory, "fp32", ready), made(directory, "fp32", None))
    begin(directory)._thread.join()
    (directory / "model.safetensors").unlink()
    ready = preload.end(directory)
    assert ready is not None
    assert not ready.names


def test_a_tensor_that_is_there_under_two_names_is_left_to_who_reads_it_then(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    name = "h.1.attn.c_attn.weight"
    for difference in (0, 1):
        weights[name] = weights[f"transformer.{name}"] + difference
        save_file(weights, directory / "model.safetensors", {"format": "pt"})
        begin(directory)._thread.join()
        ready = preload.end(directory)
        assert ready is not None
        assert ready.laid_out == 0
        if not difference:
            assert_same(made(directory, "fp32", ready), made(directory, "fp32", None))
    with pytest.raises(UserError, match=f"{name} is there twice with different values"):
        made(directory, "fp32", ready)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "pretrained_model."])
def test_names_behind_a_prefix_are_laid_out_too(directory: Path, prefix: str) -> None:
    expected = made(directory, "fp32", None)
    weights = {f"{prefix}{name}": tensor for name, tensor in load_file(directory / "model.safetensors").items()}
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    begin(directory)._thread.join()
    ready = preload.end(directory)
    assert ready is not None
    assert ready.names == {name for name, *_ in read_shape(directory).matrices()}
    assert_same(made(directory, "fp32", ready), expected)


@pytest.mark.parametrize("difference", [0, 1], ids=["equal", "another head"])
def test_a_head_beside_a_tied_embedding_is_used_if_it_differs(tmp_path: Path, difference: int) -> None:
    random_model(n_embd=20, n_head=2).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights["transformer.wte.weight"] + difference
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    begin(tmp_path)._thread.join()
    ready = preload.end(tmp_path)
    assert ready is not None
    assert "wte.weight" in ready.names
    found = made(tmp_path, "fp32", ready)
    assert found.shape.tied is not bool(difference)
    expected = weights["transformer.wte.weight"] + difference
    assert torch.equal(found.head.columns(torch.arange(300)), expected)


def test_a_shared_tensor_under_the_name_of_the_head_is_laid_out(tmp_path: Path) -> None:
    random_model(n_embd=20, n_head=2).save_pretrained(tmp_path)
    expected = made(tmp_path, "fp32", None)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("transformer.wte.weight")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    begin(tmp_path)._thread.join()
    ready = preload.end(tmp_path)
    assert ready is not None
    assert "wte.weight" in ready.names
    assert_same(made(tmp_path, "fp32", ready), expected)


def test_a_pipe_keeps_nobody_waiting(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    os.mkfifo(directory / "model.safetensors")
    begun = begin(directory)
    begun._thread.join(20)
    assert not begun._thread.is_alive()
    assert not begun.end().names


# --- files that the kernels do not read ---


def rewritten(directory: Path, content: bytes) -> Path:
    (directory / "model.safetensors").write_bytes(content)
    return directory


def with_header(directory: Path, change: dict[str, object]) -> Path:
    """The file with another entry for one of its matrices."""
    content = (directory / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["transformer.h.1.mlp.c_fc.weight"].update(change)
    written = json.dumps(header).encode()
    written += b" " * (-len(written) % 8)  # so that the numbers begin where they may
    return rewritten(directory, len(written).to_bytes(8, "little") + written + content[end:])


def test_weights_of_16_bits_and_pickled_ones_find_memory_filled(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    halves = {name: tensor.bfloat16() for name, tensor in weights.items()}
    save_file(halves, directory / "model.safetensors", {"format": "pt"})
    for _ in range(2):
        expected = made(directory, "fp32", None)
        begun = begin(directory)
        begun._thread.join()
        ready = preload.end(directory)
        assert ready is not None
        assert (ready.laid_out, ready.names) == (0, frozenset())
        assert_same(made(directory, "fp32", ready), expected)
        (directory / "model.safetensors").unlink(missing_ok=True)
        torch.save(weights, directory / "pytorch_model.bin")


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "F16"}, {"dtype": None}, {"shape": [80, 20]}, {"shape": None}, {"data_offsets": [0, 4]},
        {"data_offsets": [-6400, 0]}, {"data_offsets": [10**9, 10**9 + 6400]}, {"data_offsets": [1, 6401]},
        {"data_offsets": ["0", "6400"]}, {"data_offsets": [0]}, {"data_offsets": 7}, {"data_offsets": [0.5, 6400.5]},
        {"data_offsets": [0.0, 6400.0]}, {"data_offsets": [False, 6400]},
    ],
    ids=str,
)  # fmt: skip
def test_nothing_outside_the_file_is_read(directory: Path, change: dict[str, object]) -> None:
    begun = begin(with_header(directory, change))
    begun._thread.join()
    assert begun.end().laid_out == 0


@pytest.mark.parametrize(
    "content",
    [b"", b"1234567", b"\xff" * 64, (8).to_bytes(8, "little") + b"[[1], 2]", b"\2" + bytes(7) + b"{}"],
    ids=repr,
)
def test_no_file_of_tensors_stops_anything(directory: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    begun = begin(rewritten(directory, content))
    begun._thread.join()
    assert begun.end().laid_out == 0
    nested = b"[" * 100_000
    begun = begin(rewritten(directory, len(nested).to_bytes(8, "little") + nested))
    begun._thread.join()
    assert begun.end().laid_out == 0
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["wte", "h.1.mlp.c_proj"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_weight_that_is_not_finite_is_found(directory: Path, precision: str, name: str, bad: float) -> None:
    weights = load_file(directory / "model.safetensors")
    weights[f"transformer.{name}.weight"][-1, -1] = bad
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    begin(directory, precision)._thread.join()
    ready = preload.end(directory)
    assert ready is not None
    assert f"{name}.weight" not in ready.names
    with pytest.raises(UserError, match=f"{name}.weight holds numbers that are not finite"):
        made(directory, precision, ready)


def test_what_was_looked_through_is_not_looked_through_again(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    weights["transformer.wte.weight"][0, 0] = torch.nan
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    known = {"wte.weight"}
    assert dict(stream_weights(directory, read_shape(directory), known))["wte.weight"].isnan().any()


# --- memory ---


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_memory_is_what_the_matrices_take(precision: str) -> None:
    model = load(str(BUNDLED_DIRECTORY), "cpu", precision=precision).model
    asked = preload.memory_of(model.shape, precision, kernels_here().panel)
    held = sum(panels.nbytes + (0 if scale is None else scale.nbytes) for panels, scale in numbers(model).values())
    assert held <= asked <= 1.01 * held


def test_pages_of_the_file_are_given_back(tmp_path: Path) -> None:
    """Those of a matrix of either kind, of 40 MB."""
    library = kernels_here()
    file = tmp_path / "weights"
    file.write_bytes(bytes(40 * 2**20))
    for strides in ((1, 1024), (10240, 1)):
        content, _ = preload._map_file(file)
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
from gpt2tg.engine.cpu import compiler, kernels, preload
library, (content, _) = kernels.load(), preload._map_file(Path(sys.argv[1]))
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


def test_no_more_than_a_part_of_an_embedding_is_held_at_any_time(tmp_path: Path) -> None:
    kernels_here()
    (tmp_path / "weights").write_bytes(bytes(100 * 2**20))
    command = [sys.executable, "-c", HELD, str(tmp_path / "weights")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert int(done.stdout) < (25 + 25) * 2**20  # what is laid out, and a quarter of the file


def resident_of(file: Path) -> int:
    """Bytes of a file that this process has mapped and in memory."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            inside = line.endswith(str(file))
        elif name == "Rss:" and inside:
            found += 1024 * int(rest[0])
    return found


def test_of_a_file_that_cannot_be_read_so_much_is_filled_as_the_model_takes_beside_its_embedding(
    tmp_path: Path,
) -> None:
    model = random_model(n_embd=256, n_head=2, n_layer=4, vocab_size=16_384)
    model.bfloat16().save_pretrained(tmp_path)
    begun = begin(tmp_path)
    begun._thread.join()
    wanted = 4 * 4 * 12 * 256 * 256
    assert wanted <= resident(begun._span) <= wanted + 2 * 2**21  # it is given in pages of 2 MB


def resident(span: mmap.mmap) -> int:
    """Bytes of a span that take memory, as the system counts its pages."""
    held = (ctypes.c_ubyte * -(-len(span) // mmap.PAGESIZE))()
    address = ctypes.addressof(ctypes.c_char.from_buffer(span))
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(span)), held) == 0
    return mmap.PAGESIZE * sum(page & 1 for page in held)


def test_numbers_are_not_overwritten_by_what_is_still_being_filled(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill, filled = ctypes.memset, []

    def slowly(first: int, number: int, count: int) -> None:
        filled.append(count)
        time.sleep(0.001)
        fill(first, number, count)

    monkeypatch.setattr(preload, "PIECE", 64)
    monkeypatch.setattr(ctypes, "memset", slowly)
    weights = load_file(directory / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in weights.items()}, directory / "model.safetensors")
    expected = made(directory, "fp32", None)
    begin(directory)
    found = made(directory, "fp32", preload.end(directory))
    assert sum(filled) < preload.memory_of(read_shape(directory), "fp32", kernels_here().panel) // 2
    time.sleep(0.05)
    assert_same(found, expected)


@pytest.mark.parametrize("refused", ["memory", "thread", "kernels", "threads of torch"])
def test_what_is_not_granted_is_done_without(directory: Path, monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    def refuse(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory") if refused == "memory" else RuntimeError("can't start new thread")

    if refused == "kernels":
        monkeypatch.setattr(kernels, "load", lambda: None)
    elif refused == "threads of torch":
        monkeypatch.setattr(compiler, "openmp_libraries", list)
    else:
        monkeypatch.setattr(*((preload, "mapped") if refused == "memory" else (threading.Thread, "start")), refuse)
    preload.begin(directory, read_shape(directory), "fp32")
    assert preload.end(directory) is None


def test_a_span_that_has_no_room_for_more_is_not_taken_for_laid_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where there is another span nor where none is granted."""
    for grant in (True, False):
        memory = HugePages(preload.Ready(mmap.mmap(-1, 4096), "fp32", 4096), "fp32")
        memory.empty(1024)
        assert memory.is_packed
        if not grant:
            monkeypatch.setattr(
                "gpt2tg.engine.cpu.huge_pages.mapped", lambda size: (_ for _ in ()).throw(OSError(12, "no"))
            )
        memory.empty(16)
        assert not memory.is_packed


# --- in a process of its own ---

STARTED = """
import gc, sys
from gpt2tg.engine.cpu import kernels, preload, startup
startup.import_torch(sys.argv[1], "model_path", "cpu", sys.argv[2])
assert gc.isenabled() and "torch" in sys.modules
preload._ahead._thread.join()
kernels.load().pack_matrix = None
from gpt2tg.checkpoint import weights
looked_through = []
weights._is_finite = lambda tensor: looked_through.append(tensor) or True
from gpt2tg.generation.generator import load
from gpt2tg.options import decoding_options
(sample,) = load(sys.argv[1], "cpu", precision=sys.argv[2]).generate(
    "The fox", decoding_options(dict(decoding="greedy", max_new_tokens=20))
)
print(len(looked_through), *sample.ids)
"""


@pytest.mark.parametrize("precision", PRECISIONS)
def test_torch_is_imported_and_the_model_laid_out_meanwhile(model_dir: Path, precision: str) -> None:
    kernels_here()
    command = [sys.executable, "-W", "error", "-c", STARTED, str(model_dir), precision]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    options = decoding_options(dict(decoding="greedy", max_new_tokens=20))
    (sample,) = load(str(model_dir), "cpu", precision=precision).generate("The fox", options)
    shape = read_shape(model_dir)
    others = len(list(shape.tensors())) - len(list(shape.matrices()))
    assert [int(number) for number in done.stdout.split()] == [others, *sample.ids]
