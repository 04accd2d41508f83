"""Our own kernels for a processor's vector units (kernels.c): compiled once per machine, called through ctypes.

Where there is no C compiler that knows OpenMP, `load` gives None and torch does the work.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SOURCE = Path(__file__).with_name("kernels.c")

COMPILERS = ("cc", "gcc", "clang")
# What is fused is written out in the source: left to the compiler, bits would depend on the loop that a sum stands in.
FLAGS = ("-O3", "-march=native", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
FLAGS += ("-shared", "-fPIC")

# Set to 0, torch does the work.
SWITCH = "GPT2TG_KERNELS"

PRECISIONS = {"fp32": 0, "fp16": 1, "int8": 2}
ACTIVATIONS = {"gelu_new": 1, "gelu_pytorch_tanh": 1, "gelu_fast": 1, "gelu": 2, "relu": 3}

Floats = ctypes.c_void_p
Int, Stride = ctypes.c_int32, ctypes.c_int64


class Matrix(ctypes.Structure):
    """As in kernels.c."""

    _fields_ = (
        ("panels", ctypes.c_void_p),
        ("scale", Floats),
        ("bias", Floats),
        ("inputs", Int),
        ("outputs", Int),
        ("precision", Int),
    )


class Stored(ctypes.Structure):
    """As in kernels.c."""

    _fields_ = (
        ("weights", Floats),
        ("input", Stride),
        ("output", Stride),
        ("inputs", Int),
        ("outputs", Int),
        ("precision", Int),
        ("panels", ctypes.c_void_p),
        ("scale", Floats),
    )


class Layer(ctypes.Structure):
    """As in kernels.c."""

    _fields_ = (
        *((name, Floats) for name in ("norm_1_weight", "norm_1_bias", "norm_2_weight", "norm_2_bias")),
        *((name, Matrix) for name in ("attend", "attended", "up", "down")),
        ("scale", ctypes.c_float),
    )


class Model(ctypes.Structure):
    """As in kernels.c."""

    _fields_ = (
        ("layers", ctypes.POINTER(Layer)),
        *((name, Floats) for name in ("positions", "norm_weight", "norm_bias")),
        ("embedding", Matrix),
        ("head", Matrix),
        *((name, Int) for name in ("depth", "width", "heads", "activation")),
        ("epsilon", ctypes.c_float),
    )


class Cache(ctypes.Structure):
    """As in kernels.c."""

    _fields_ = (("numbers", ctypes.c_void_p), ("rows", Int), ("capacity", Int), ("precision", Int))


class Kernels:
    """The compiled library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.panel: int = library.panel_width()
        """How many outputs of a matrix lie side by side in a panel."""
        self.lanes: int = library.lanes()
        """How many numbers a register holds; the capacity of a cache is a multiple of it."""
        self.items: int = library.items()
        """How many items are multiplied at a time; of more, a packed copy is made, filled up to a multiple of it."""
        self.group: int = library.group()
        """How many tokens of a text attend in one go, at most."""
        self.lay_out = library.lay_out
        self.lay_out.argtypes = [ctypes.POINTER(Stored), Int]
        self.lay_out.restype = None
        self.lay_out_file = library.lay_out_file
        self.lay_out_file.argtypes = [ctypes.POINTER(Stored), Int, ctypes.POINTER(Int)]
        self.lay_out_file.restype = Int
        self.linear = library.linear
        self.linear.argtypes = [ctypes.POINTER(Matrix), Int, Floats, Floats, Floats, Int]
        self.linear.restype = None
        self.step = library.step
        self.step.argtypes = [ctypes.POINTER(Model), Cache, Int, *[Floats] * 3, Int, *[Floats] * 4, Int]
        self.step.restype = None
        self.gelu = library.gelu
        self.gelu.argtypes = [Floats, ctypes.c_int64, Floats, Floats, Int]
        self.gelu.restype = None


def is_off() -> bool:
    """Whether the kernels are switched off, or cannot be had on this system."""
    return os.environ.get(SWITCH) == "0" or sys.platform == "win32"


@functools.cache
def load() -> Kernels | None:
    """The kernels, compiled if need be (about a second, once per machine); None where that cannot be done.

    Wants no torch, so that it can be called while torch is imported; but what torch brings has to be there.
    """
    if is_off():
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError, AttributeError):
        for library in threads_of_torch():
            ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
        path = cache_directory() / f"kernels-{fingerprint()}.so"
        with contextlib.suppress(OSError, AttributeError):  # not there, or of no use: broken, or made for another libc
            return Kernels(ctypes.CDLL(str(path)))
        if compiler := next(filter(None, map(shutil.which, COMPILERS)), None):
            _compile(compiler, path)
            return Kernels(ctypes.CDLL(str(path)))
    return None


def cache_directory() -> Path:
    """Where what was compiled and measured for this machine is kept, for this user alone.

    Raises:
        OSError: it cannot be written, or belongs to someone else.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if home.startswith("~"):
        raise FileNotFoundError("nobody knows where this user is at home")
    directory = Path(home) / "gpt2tg"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "getuid") and directory.stat().st_uid != os.getuid():
        raise PermissionError(f"{directory} belongs to another user")
    return directory


def machine() -> str:
    """What a compiled or measured thing depends on: the processor, its features, torch."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = "".join(sorted({line for line in lines if line.startswith(("flags", "model name", "Features"))}))
    except OSError:
        processor = platform.processor()
    return f"{platform.machine()} {processor} {(_torch() / 'version.py').read_text(encoding='utf-8')}"


def _torch() -> Path:
    """Where torch is installed. It is not imported."""
    try:
        found = importlib.util.find_spec("torch")
    except ValueError:  # a module of that name that came in no usual way
        found = None
    if found is None or found.origin is None:
        raise FileNotFoundError("torch is not installed as files")
    return Path(found.origin).parent


def fingerprint() -> str:
    """Of the kernels as they are compiled here."""
    parts = (SOURCE.read_text(encoding="utf-8"), " ".join(FLAGS), machine())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _compile(compiler: str, path: Path) -> None:
    """Compile beside the place and move there, so that nobody loads half a file."""
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        made = Path(directory) / path.name
        subprocess.run(
            [compiler, *FLAGS, str(SOURCE), "-o", str(made), *threads_of_torch(), "-lm"],
            check=True,
            capture_output=True,
            timeout=120,
        )
        os.replace(made, path)


def threads_of_torch() -> list[str]:
    """The OpenMP library that torch brings: a second one would have threads of its own, in the way of torch's."""
    with contextlib.suppress(OSError):
        return [str(path) for path in sorted((_torch() / "lib").glob("libgomp*.so*"))[:1]]
    return []


def pointer(tensor: Tensor | None) -> int | None:
    """Where the numbers of a tensor begin."""
    return None if tensor is None else tensor.data_ptr()


def integers(numbers: Sequence[int]) -> ctypes.Array[Int]:
    """As the kernels are given them."""
    return (Int * len(numbers))(*numbers)
