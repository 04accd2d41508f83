"""The integer product of every kind of processor, against integers in numpy."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import has_avx2, kernels_here

from gpt2tg.engine.cpu import compiler

# Compiled alone, so that each takes a fraction of a second.
SOURCE = """
#include <math.h>
#include <stdint.h>
#include <string.h>
#include "vector.h"
#ifdef WITHOUT_INSTRUCTIONS
#undef __AVX2__
#endif
#include "structs.h"
#include "integer.h"

int32_t offset(void) { return WEIGHT_OFFSET; }
int32_t lanes(void) { return LANES; }
void dot(const uint8_t *weights, const int8_t *inputs, int32_t *sums) {
  int32_t four;
  memcpy(&four, inputs, 4);
  *(vector *)sums = (vector)dot4(load_integers(sums), load_integers(weights), four);
}
"""

# The features of /proc/cpuinfo that they need beside AVX2, and the flags of the compiler.
PROCESSORS = {
    "AVX-512 VNNI": ({"avx512_vnni", "avx512vl"}, ["-march=cascadelake"]),
    "AVX-512BW": ({"avx512bw", "avx512vl"}, ["-march=skylake-avx512"]),
    "AVX-VNNI": ({"avx_vnni"}, ["-march=haswell", "-mavxvnni"]),
    "AVX2": (set(), ["-march=haswell"]),
    "portable": (set(), ["-march=haswell", "-DWITHOUT_INSTRUCTIONS"]),
}


@pytest.mark.parametrize("processor", PROCESSORS)
def test_integer_product_is_exact_on_every_processor(processor: str, tmp_path: Path) -> None:
    """The largest products too: some instructions add two of them in 16 bits, with saturation."""
    kernels_here()
    features, flags = PROCESSORS[processor]
    if not has_avx2() or not features <= set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split()):
        pytest.skip(f"this processor cannot run the product for {processor}")
    found = compiler.find_compiler()
    assert found
    (tmp_path / "dot.c").write_text(SOURCE, encoding="utf-8")
    options = ["-O1", "-shared", "-fPIC", "-w", f"-I{compiler.SOURCE.parent}", *flags]
    subprocess.run([found, *options, str(tmp_path / "dot.c"), "-o", str(tmp_path / "dot.so")], check=True)
    library = ctypes.CDLL(str(tmp_path / "dot.so"))
    lanes, offset = library.lanes(), library.offset()
    draw = np.random.default_rng(0)
    for extreme in (False, True):
        for _ in range(200):
            weights, inputs = (
                draw.choice([-127, 127], size) if extreme else draw.integers(-127, 128, size)
                for size in ((lanes, 4), (4,))
            )
            sums = draw.integers(-(10**6), 10**6, lanes, dtype=np.int32)
            begun = sums - offset * inputs.sum(dtype=np.int32)
            library.dot(
                (weights + offset).astype(np.uint8).ctypes.data_as(ctypes.c_void_p),
                inputs.astype(np.int8).ctypes.data_as(ctypes.c_void_p),
                begun.ctypes.data_as(ctypes.c_void_p),
            )
            assert (begun == sums + (weights * inputs).sum(1)).all()
