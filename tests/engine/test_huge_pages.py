"""Memory in huge pages."""

from __future__ import annotations

import ctypes
import gc
import mmap
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gpt2tg.engine import memory, pages
from gpt2tg.engine.memory import HugePages

HUGE, SMAPS = Path("/sys/kernel/mm/transparent_hugepage/enabled"), Path("/proc/self/smaps")


def test_tensors_keep_their_numbers_apart() -> None:
    huge = HugePages()
    shapes = [(3,), (5, 7), (2, 3, 4), (1000,)]
    kinds = [torch.int8, torch.float16, torch.float32, torch.float32]
    tensors = [huge.empty(*shape, dtype=kind) for shape, kind in zip(shapes, kinds, strict=True)]
    for number, tensor in enumerate(tensors):
        tensor.fill_(number)
    for number, tensor in enumerate(tensors):
        assert tensor.shape == shapes[number]
        assert tensor.dtype == kinds[number]
        assert (tensor == number).all()
        assert tensor.data_ptr() % 64 == 0


def test_more_than_a_span_is_given_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SPAN", 4096)
    huge = HugePages()
    tensors = [huge.empty(n, dtype=torch.float32) for n in (1000, 1000, 50_000, 3)]
    for number, tensor in enumerate(tensors):
        tensor.fill_(number)
    assert [tensor.unique().tolist() for tensor in tensors] == [[0], [1], [2], [3]]


def test_memory_is_given_back_with_the_last_tensor_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[mmap.mmap]] = []
    mapped = pages.mapped

    def noted(size: int) -> mmap.mmap:
        piece = mapped(size)
        made.append(weakref.ref(piece))
        return piece

    monkeypatch.setattr(memory, "mapped", noted)
    huge = HugePages()
    first, second = huge.empty(10), huge.empty(10)
    del huge, first
    gc.collect()
    (piece,) = made
    assert piece() is not None
    assert second.fill_(1).sum() == 10
    del second
    gc.collect()
    assert piece() is None


def test_an_empty_tensor_and_a_system_without_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert HugePages().empty(0, 4).shape == (0, 4)
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert HugePages().empty(4, 5).fill_(2).sum() == 40


def test_memory_that_is_not_granted_is_taken_from_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(size: int) -> mmap.mmap:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(memory, "SPAN", 4096)
    huge = HugePages()
    first = huge.empty(1000).fill_(1)
    monkeypatch.setattr(memory, "mapped", refuse)
    second, third = huge.empty(1000).fill_(2), huge.empty(10).fill_(3)
    assert [tensor.unique().tolist() for tensor in (first, second, third)] == [[1], [2], [3]]


@pytest.mark.skipif(not HUGE.exists() or not SMAPS.exists(), reason="no huge pages here, or no word of them")
def test_huge_pages_are_asked_for() -> None:
    tensor = HugePages().empty(32 * 2**20, dtype=torch.int8)
    of_its_mapping = ""
    for line in SMAPS.read_text(encoding="utf-8").splitlines():
        head, _, rest = line.partition(" ")
        if "-" in head and not head.endswith(":"):
            first, last = (int(end, 16) for end in head.split("-"))
            inside = first <= tensor.data_ptr() < last
        elif head == "VmFlags:" and inside:
            of_its_mapping = rest
    assert "hg" in of_its_mapping.split()


@pytest.fixture
def ahead() -> Iterator[None]:
    """Whatever a test leaves filled is given back."""
    yield
    pages.filled_ahead()


on_linux = pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="memory is filled ahead on Linux alone")


@on_linux
def test_what_is_filled_ahead_is_what_the_first_tensors_lie_in(ahead: None) -> None:
    pages.fill_ahead(2**22, filled=2**21)
    huge = HugePages(pages.filled_ahead())
    first, second = huge.empty(1000).fill_(1), huge.empty(2**20, dtype=torch.int8).fill_(2)
    third = huge.empty(2**22, dtype=torch.int8).fill_(3)  # has no room there
    assert pages.filled_ahead() is None
    assert second.data_ptr() - first.data_ptr() == 4032  # of 64 bytes each, as many as hold 4000
    assert [tensor.unique().tolist() for tensor in (first, second, third)] == [[1], [2], [3]]


@on_linux
def test_no_number_is_overwritten_by_what_is_still_being_filled(ahead: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PIECE", 4096)
    pages.fill_ahead(2**26, filled=2**26)  # in many pieces, and so it is not done at once
    tensor = HugePages(pages.filled_ahead()).empty(2**26, dtype=torch.int8).fill_(7)
    assert (tensor == 7).all()


@on_linux
def test_only_as_much_as_was_said_is_filled(ahead: None) -> None:
    pages.fill_ahead(2**28, filled=2**22)
    pages._filling._thread.join()
    assert 2**22 <= resident(pages._filling._span) < 2**24


@on_linux
def test_what_is_too_small_or_not_wanted_is_given_back(ahead: None) -> None:
    for give_back in (pages.filled_ahead, lambda: HugePages(pages.filled_ahead()).empty(2**20)):
        pages.fill_ahead(2**20, filled=2**20)
        span = weakref.ref(pages._filling._span)
        give_back()
        gc.collect()
        assert span() is None


def test_memory_that_is_not_granted_is_not_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(size: int) -> mmap.mmap:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(pages, "mapped", refuse)
    pages.fill_ahead(2**20, filled=2**20)
    assert pages.filled_ahead() is None


def resident(span: mmap.mmap) -> int:
    """Bytes of a span that take memory, as the system counts its pages."""
    held = (ctypes.c_ubyte * (len(span) // mmap.PAGESIZE))()
    address = ctypes.addressof(ctypes.c_char.from_buffer(span))
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(span)), held) == 0
    return mmap.PAGESIZE * sum(page & 1 for page in held)
