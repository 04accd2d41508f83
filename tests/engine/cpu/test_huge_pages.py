"""Tensors in huge pages."""

from __future__ import annotations

import gc
import mmap
import weakref
from pathlib import Path

import pytest
import torch

from gpt2tg.engine.cpu import huge_pages, memory_maps
from gpt2tg.engine.cpu.huge_pages import HugePages

HUGE, SMAPS = Path("/sys/kernel/mm/transparent_hugepage/enabled"), Path("/proc/self/smaps")


def test_tensors_do_not_overlap() -> None:
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


def test_tensors_beyond_a_span_are_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "SPAN", 4096)
    huge = HugePages()
    tensors = [huge.empty(n, dtype=torch.float32) for n in (1000, 1000, 50_000, 3)]
    for number, tensor in enumerate(tensors):
        tensor.fill_(number)
    assert [tensor.unique().tolist() for tensor in tensors] == [[0], [1], [2], [3]]


def test_span_is_freed_with_its_last_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[mmap.mmap]] = []
    mapped = memory_maps.mapped

    def noted(size: int) -> mmap.mmap:
        piece = mapped(size)
        made.append(weakref.ref(piece))
        return piece

    monkeypatch.setattr(huge_pages, "mapped", noted)
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


def test_empty_tensor_and_a_system_without_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert HugePages().empty(0, 4).shape == (0, 4)
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert HugePages().empty(4, 5).fill_(2).sum() == 40


def test_torch_allocates_if_no_map_is_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(size: int) -> mmap.mmap:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(huge_pages, "SPAN", 4096)
    huge = HugePages()
    first = huge.empty(1000).fill_(1)
    monkeypatch.setattr(huge_pages, "mapped", refuse)
    second, third = huge.empty(1000).fill_(2), huge.empty(10).fill_(3)
    assert [tensor.unique().tolist() for tensor in (first, second, third)] == [[1], [2], [3]]


@pytest.mark.skipif(not HUGE.exists() or not SMAPS.exists(), reason="no huge pages on this system")
def test_huge_pages_are_requested() -> None:
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
