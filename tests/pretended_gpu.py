"""A pretended GPU: tensors have a device, a shape and a dtype, but no numbers. Needs neither a GPU nor CUDA.

In torch's FakeTensorMode, tensors may be on `cuda` or `mps` on any machine, and an operation on tensors of two devices
is an error, as on a real GPU. On top of that, this module

- notices every host sync: a value that is read, a shape that depends on values, a copy from or to pageable memory. With
  `strict`, and while a CUDA graph is captured, a host sync raises `HostSync`. Otherwise it is counted;
- counts the kernels that are launched, and notes dtypes, the largest tensor, and the shapes of attention;
- replaces what FakeTensorMode lacks on a CPU build: device guards, pinned memory, CUDA events, streams and graphs.

A value that is read is 0.0, False, or 1 if it is a whole number; in a list, numbers are 0 and truth values True: so
texts go on to their limit. torch's own backward pass cannot run: its engine asks for a real device.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gpt2tg.engine import step_cache
from gpt2tg.engine.step_cache import AttentionKernel

PACKAGE = f"{os.sep}gpt2tg{os.sep}"

# Operations that read values on the host.
READS = {"item", "_local_scalar_dense", "is_nonzero", "equal"}

# Operations whose result has a shape that depends on values.
DATA_DEPENDENT = {"nonzero", "argwhere", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}

COPIES = {"to", "_to_copy", "copy_", "copy"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}

# Operations that launch no kernel.
VIEWS = set(
    """view _unsafe_view reshape _reshape_alias expand permute transpose t select slice narrow unsqueeze squeeze detach
    detach_ alias as_strided unbind split split_with_sizes unfold unflatten flatten lift_fresh empty empty_strided
    empty_like new_empty new_empty_strided device pin_memory _pin_memory is_pinned""".split()  # noqa: SIM905
)


class HostSync(RuntimeError):
    """Code waits for the GPU where it must not."""


class PretendedGPU(TorchDispatchMode):
    """Sees every operation: raises or counts host syncs, and counts kernels."""

    def __init__(self, kind: str, strict: bool, triton: bool = False) -> None:
        super().__init__()
        self.kind = kind
        self._has_triton = triton
        self.strict = strict
        """Whether a host sync raises an error."""
        self.syncs: Counter[str] = Counter()
        """Host syncs, by the line of the package and what it does."""
        self.kernels: Counter[str] = Counter()
        """Operations that launch a kernel."""
        self.dtypes: set[torch.dtype] = set()
        self.largest = 0
        """Numbers in the largest tensor that was computed."""
        self.attention: list[Attention] = []
        self.graphs: list[str] = []
        """`capture` and `replay`, in their order."""
        self.pools: Counter[object] = Counter()
        """The graphs that live, by their memory pool."""
        self._pinned: list[Tensor] = []

    def sync(self, what: str) -> None:
        """Raise or count a host sync."""
        frame: FrameType | None = sys._getframe()
        while frame is not None and PACKAGE not in frame.f_code.co_filename:
            frame = frame.f_back
        place = "outside the package"
        if frame is not None:
            place = f"{frame.f_code.co_filename.rpartition(PACKAGE)[2]}:{frame.f_lineno}"
        if self.strict:
            raise HostSync(f"{place}: {what}")
        self.syncs[f"{place}: {what}"] += 1

    def attention_kernel(self, cache: Tensor) -> AttentionKernel | None:
        """Stand in for the kernel of triton_attention.py: check its arguments and launch as many kernels."""
        if not (self._has_triton and self.is_here(cache)):
            return None
        held, size = cache.shape[2:5], cache.shape[-1]

        def attend(query: Tensor, key: Tensor, value: Tensor, *cached: Tensor | float) -> Tensor:
            keys, values, lengths, scale = cached
            rows, heads = query.shape[:2]
            assert isinstance(keys, Tensor)
            assert isinstance(values, Tensor)
            assert isinstance(lengths, Tensor)
            assert isinstance(scale, float)
            assert keys.shape == values.shape == (*held, size)
            assert keys.stride()[1:] == values.stride()[1:] == (held[2] * size, size, 1)
            assert {x.dtype for x in (query, key, value, keys, values)} == {cache.dtype}
            assert all(self.is_here(x) for x in (query, key, value, keys, values, lengths))
            assert len({x.stride() for x in (query, key, value)}) == 1
            assert query.stride(3) == 1
            assert tuple(lengths.shape) == (rows,) <= (held[0],)
            self.kernels.update(["attend_to_split", "merge_splits"])
            return query.new_empty(rows, heads, 1, size)

        return attend

    def is_here(self, x: object) -> bool:
        return isinstance(x, Tensor) and x.device.type == self.kind

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = func.name().split("::")[1].split(".")[0]
        if name in READS:
            return self._read(name, args[0])
        if name in DATA_DEPENDENT or (name == "where" and len(args) == 1):
            return self._data_dependent(name, args[0])
        if name in ("pin_memory", "_pin_memory"):
            self._pinned.append(args[0])
            return args[0]
        if name in COPIES:
            kwargs = self._check_copy(args, kwargs)
        if name in INDEXING:
            args = (args[0], [self._check_index(args[0], index) for index in args[1]], *args[2:])
        result = func(*args, **kwargs)
        if isinstance(result, FakeTensor):
            result.constant = None  # a fake tensor of few numbers keeps them, and would compute with them
        self._count(name, args, result if isinstance(result, (tuple, list)) else (result,))
        return result

    def _read(self, name: str, x: Tensor) -> Any:
        if self.is_here(x):
            self.sync(f"{name} reads a value")
        if name in ("is_nonzero", "equal") or x.dtype == torch.bool:
            return False
        return 0.0 if x.is_floating_point() else 1

    def _data_dependent(self, name: str, x: Tensor) -> Any:
        """Return a result with one element."""
        if self.is_here(x):
            self.sync(f"{name} has a shape that depends on values")
        index = torch.zeros(1, dtype=torch.int64, device=x.device)
        if name == "where":
            return (index,) * x.dim()
        if name.lstrip("_").startswith("unique"):
            return index.to(x.dtype), index, index
        return index.to(x.dtype) if name == "masked_select" else index.expand(1, x.dim())

    def _check_copy(self, args: tuple, kwargs: dict) -> dict:
        """Find a copy between devices that makes the host wait: all but those from or to pinned memory, if they ask not
        to wait. Return the arguments with the device's number, without which the borrowed guard is asked for it."""
        target = kwargs.get("device")
        if target is not None and torch.device(target).type == self.kind:
            kwargs = {**kwargs, "device": torch.device(self.kind, 0)}
        source, others = args[0], [x for x in args[1:] if isinstance(x, Tensor)]
        if target is None and others:  # x.copy_(y) copies y, x.to(y) copies x
            target, memory = others[0].device, (args[0], others[0])
        else:
            memory = (source,)
        if target is None or torch.device(target).type == source.device.type:
            return kwargs
        is_pinned = any(x is pinned for x in memory for pinned in self._pinned)
        non_blocking = kwargs.get("non_blocking") or (len(args) > 2 and args[2] is True)
        if self.kind in (torch.device(target).type, source.device.type) and not (is_pinned and non_blocking):
            self.sync(f"a copy between {source.device.type} and {torch.device(target).type} waits")
        return kwargs

    def _check_index(self, x: Tensor, index: Tensor | None) -> Tensor | None:
        """Find indices that are copied from the host, and masks, which are converted to indices on the host."""
        if index is None or not self.is_here(x):
            return index
        if index.dtype == torch.bool:
            self.sync("a mask is used as an index")
            return torch.zeros(1, dtype=torch.int64, device=x.device)
        if not self.is_here(index):
            self.sync("an index is on the host")
            return torch.zeros(index.shape, dtype=torch.int64, device=x.device)
        return index

    def _count(self, name: str, args: tuple, results: tuple) -> None:
        here = [x for x in (*args, *results) if self.is_here(x)]
        self.dtypes.update(x.dtype for x in here)
        if here and name not in VIEWS:
            self.kernels[name] += 1
            self.largest = max([self.largest, *(x.numel() for x in results if self.is_here(x))])


class Attention:
    """One call of attention. A library may prepare a plan for each new pair of shapes."""

    def __init__(self, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool) -> None:
        self.shapes = tuple(query.shape), tuple(key.shape)
        self.dtype = query.dtype
        self.is_causal = is_causal
        self.has_mask = mask is not None


class FusedAttention(TorchFunctionMode):
    """Keeps attention one operation, as on a GPU, and gives devices their number before C++ asks the borrowed guard."""

    def __init__(self, gpu: PretendedGPU) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention" and self._gpu.is_here(args[0]):
            return self._attention(*args, **kwargs)
        if name in ("to", "cuda"):
            args = tuple(self._numbered(x) for x in args)
            kwargs = {key: self._numbered(x) for key, x in kwargs.items()}
        return func(*args, **kwargs)

    def _numbered(self, x: Any) -> Any:
        is_device = isinstance(x, (str, torch.device)) and torch.device(x).type == self._gpu.kind
        return torch.device(self._gpu.kind, 0) if is_device else x

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **_: object,
    ) -> Tensor:
        """Check what the kernels require. The result has the memory layout that they leave."""
        for x in (key, value, attn_mask):
            assert x is None or x.device == query.device, f"attention mixes {query.device} and {x.device}"
            assert x is None or x.dtype in (query.dtype, torch.bool), f"attention mixes {query.dtype} and {x.dtype}"
        self._gpu.attention.append(Attention(query, key, attn_mask, is_causal))
        rows, heads, tokens, _ = query.shape
        mixed = query.new_empty(rows, tokens, heads, value.shape[-1]).transpose(1, 2)
        return mixed + 0 * query if query.requires_grad else mixed


class FakeMode(FakeTensorMode):
    """Takes no notice of the GPU that torch.cuda is made to report."""

    avoid_device_init = True


def pretended_runtime(gpu: PretendedGPU, capture_error: Exception | None) -> dict[str, Any]:
    """Return replacements for the names of torch.cuda that the package uses.

    Args:
        capture_error: raised at the end of each capture of a graph.
    """

    class Graph:
        def __init__(self) -> None:
            self._strict_before = gpu.strict
            self._pool: object = None

        def capture_begin(self, pool: object = None, **_: object) -> None:
            """A pool without any graph left is released, and torch cannot capture into it any more."""
            if pool is not None and not gpu.pools[pool]:
                raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED")
            self._pool = object() if pool is None else pool
            gpu.pools[self._pool] += 1
            gpu.graphs.append("capture")
            self._strict_before, gpu.strict = gpu.strict, True

        def capture_end(self) -> None:
            gpu.strict = self._strict_before
            if capture_error is not None:
                raise capture_error

        def pool(self) -> object:
            return self._pool

        def replay(self) -> None:
            gpu.graphs.append("replay")

        def __del__(self) -> None:
            gpu.pools[self._pool] -= 1

    def anything(*_: object, **__: object) -> contextlib.AbstractContextManager[Any]:
        return mock.MagicMock()

    return {
        "CUDAGraph": Graph,
        **dict.fromkeys(
            ("Event", "Stream", "device", "stream", "current_stream", "set_stream", "synchronize"), anything
        ),
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "is_current_stream_capturing": lambda: gpu.graphs[-1:] == ["capture"] and gpu.strict,
        "get_device_properties": lambda *_: mock.Mock(total_memory=80 * 2**30, major=9, minor=0),
        "get_device_capability": lambda *_: (9, 0),
    }


@contextlib.contextmanager
def borrowed_guard(kind: str) -> Iterator[None]:
    """Use the device guard of `meta`, which does nothing, for a device that this build of torch has no guard for.

    C++ asks for a guard while it indexes, converts and differentiates. The registry is an array of pointers, by kind of
    device.
    """
    kinds = torch._C._autograd.DeviceType
    library = ctypes.CDLL(str(next((Path(torch.__file__).parent / "lib").glob("*c10.*"))))
    registry = (ctypes.c_void_p * len(kinds.__members__)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    place, meta = (int(kinds.__members__[name]) for name in (kind.upper(), "Meta"))
    before = registry[place]
    registry[place] = before or registry[meta]
    try:
        yield
    finally:
        registry[place] = before


@contextlib.contextmanager
def pretended_gpu(
    kind: str = "cuda", strict: bool = False, capture_error: Exception | None = None, triton: bool = False
) -> Iterator[PretendedGPU]:
    """Within the block, tensors may be on the device `kind`, and no tensor has numbers.

    Args:
        strict: whether host syncs raise `HostSync` from the beginning.
        capture_error: raised at the end of each capture of a CUDA graph.
        triton: whether our attention kernel can be used.
    """
    gpu = PretendedGPU(kind, strict, triton)

    def listed(x: Tensor) -> Any:
        if gpu.is_here(x):
            gpu.sync("tolist reads values")
        return _filled(x.shape, True if x.dtype == torch.bool else 0)

    with contextlib.ExitStack() as stack:
        stack.enter_context(borrowed_guard(kind))
        stack.enter_context(mock.patch.object(FakeTensor, "tolist", listed, create=True))
        stack.enter_context(FakeMode(allow_non_fake_inputs=True))
        # Triton would compile for the real GPU.
        stack.enter_context(mock.patch.object(step_cache, "new_attention_kernel", gpu.attention_kernel))
        if kind == "cuda":
            for name, instead in pretended_runtime(gpu, capture_error).items():
                stack.enter_context(mock.patch.object(torch.cuda, name, instead))
        stack.enter_context(gpu)
        stack.enter_context(FusedAttention(gpu))
        yield gpu


def _filled(shape: torch.Size, value: object) -> Any:
    return [_filled(shape[1:], value) for _ in range(shape[0])] if shape else value
