"""Our own CPU kernels (kernels.c), called through ctypes. `load` returns None where they cannot be compiled; then torch
computes. Nothing here needs torch to be imported."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import subprocess
import sys
from ctypes import c_float as Float
from ctypes import c_int32 as Int
from ctypes import c_int64 as Long
from ctypes import c_void_p as Pointer
from typing import Any, Protocol

from gpt2tg.engine.cpu import compiler

# Environment variable; 0 turns the kernels off.
SWITCH = "GPT2TG_KERNELS"

# The values of the enums in C, and activation functions by their names in config.json.
PRECISIONS = {"fp32": 0, "fp16": 1, "int8": 2}
ACTIVATION_NAMES = ("none", "gelu_tanh", "gelu", "relu")
ACTIVATIONS = {"gelu_new": 1, "gelu_pytorch_tanh": 1, "gelu_fast": 1, "gelu": 2, "relu": 3}


class Matrix(ctypes.Structure):
    """A packed matrix."""

    _fields_ = (
        *((name, Pointer) for name in ("panels", "scale", "bias")),
        *((name, Int) for name in ("inputs", "outputs", "precision")),
    )


class UnpackedMatrix(ctypes.Structure):
    """A matrix in fp32, and where to pack it."""

    _fields_ = (
        ("weights", Pointer),
        *((name, Long) for name in ("input_stride", "output_stride")),
        *((name, Int) for name in ("inputs", "outputs", "precision")),
        *((name, Pointer) for name in ("panels", "scale")),
    )


class Layer(ctypes.Structure):
    """A transformer block."""

    _fields_ = (
        *((name, Pointer) for name in ("norm_1_weight", "norm_1_bias", "norm_2_weight", "norm_2_bias")),
        *((name, Matrix) for name in ("attention_in", "attention_out", "mlp_in", "mlp_out")),
        ("scale", Float),
    )


class Model(ctypes.Structure):
    """A GPT-2."""

    _fields_ = (
        ("layers", ctypes.POINTER(Layer)),
        *((name, Pointer) for name in ("positions", "norm_weight", "norm_bias")),
        *((name, Matrix) for name in ("embedding", "head")),
        *((name, Int) for name in ("depth", "width", "heads", "activation")),
        ("epsilon", Float),
    )


class Cache(ctypes.Structure):
    """A KV cache."""

    _fields_ = (("numbers", Pointer), *((name, Int) for name in ("rows", "capacity", "precision")))


class Batch(ctypes.Structure):
    """What one forward pass reads and writes."""

    _fields_ = (
        *((name, Int) for name in ("tokens", "selected_count")),
        *((name, Pointer) for name in ("ids", "positions", "cache_rows", "selected", "logits", "hidden", "scratch")),
    )


# In the order of STRUCT_SIZES in structs.h, which documents the fields.
STRUCTS: tuple[type[ctypes.Structure], ...] = (Matrix, UnpackedMatrix, Layer, Model, Cache, Batch)


class Kernels:
    """The functions of the compiled library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        check_interface(library)
        self.panel: int = library.panel_width()
        """How many outputs of a matrix a panel holds."""
        self.tile: int = library.key_tile()
        """How many keys are interleaved in a KV cache; its capacity is a multiple of it."""

        def function(
            name: str, *arguments: type[Any], result: type[Int] | type[Long] | None = None
        ) -> ctypes._FuncPointer:
            found = library[name]
            found.argtypes, found.restype = arguments, result
            return found

        matrix, unpacked = ctypes.POINTER(Matrix), ctypes.POINTER(UnpackedMatrix)
        model, cache, batch = ctypes.POINTER(Model), ctypes.POINTER(Cache), ctypes.POINTER(Batch)
        self.pack_matrix = function("pack_matrix", unpacked, Int)
        self.pack_file = function("pack_file", unpacked, Int, ctypes.POINTER(Int), result=Int)
        self._packed_bytes = function("packed_bytes", Int, Int, Int, result=Long)
        self.columns = function("columns", matrix, Pointer, Long, Pointer)
        self.linear = function("linear", matrix, Int, Pointer, Pointer, Pointer, Int)
        self.linear_scratch = function("linear_scratch", matrix, Int, Int, result=Long)
        self.forward = function("forward", model, cache, batch, Int)
        self.forward_scratch = function("forward_scratch", model, Int, Int, Int, result=Long)
        self.gelu = function("gelu", Pointer, Long, Pointer, Pointer, Int)

    def packed_bytes(self, inputs: int, outputs: int, precision: str) -> int:
        """Return how many bytes the panels of a matrix take."""
        size: int = self._packed_bytes(inputs, outputs, PRECISIONS[precision])
        return size


def check_interface(library: ctypes.CDLL) -> None:
    """Compare the structs and enums here with those of the library.

    Raises:
        AssertionError: they differ: this module does not match structs.h.
    """
    sizes = (Int * len(STRUCTS)).in_dll(library, "STRUCT_SIZES")
    assert list(sizes) == [ctypes.sizeof(struct) for struct in STRUCTS], "kernels.py does not match structs.h"
    for exported, names in (("PRECISION_NAMES", PRECISIONS), ("ACTIVATION_NAMES", ACTIVATION_NAMES)):
        found = (ctypes.c_char_p * len(names)).in_dll(library, exported)
        assert list(found) == [name.encode() for name in names], f"kernels.py does not match {exported} in structs.h"


def is_off() -> bool:
    """Whether the kernels are switched off, or not available on this system."""
    return os.environ.get(SWITCH) == "0" or sys.platform == "win32"


@functools.cache
def load() -> Kernels | None:
    """Return the kernels; None where they are switched off, or cannot be compiled or loaded.

    They are compiled if the cache does not hold them: once per machine, which takes a few seconds.
    """
    if is_off():
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError, AttributeError):
        for library in compiler.openmp_libraries():
            ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
        path = compiler.compiled_file()
        with contextlib.suppress(OSError, AttributeError, ValueError):  # missing, broken, or compiled for another libc
            return Kernels(ctypes.CDLL(str(path)))
        if found := compiler.find_compiler():
            compiler.compile_library(found, path)
            return Kernels(ctypes.CDLL(str(path)))
    return None


class HasAddress(Protocol):
    """A torch tensor, as far as the kernels are concerned."""

    def data_ptr(self) -> int:
        """Return the address of its first number."""


def pointer(tensor: HasAddress | None) -> int | None:
    """Return the address of a tensor's first number; None, which is NULL in C, for no tensor."""
    return None if tensor is None else tensor.data_ptr()
