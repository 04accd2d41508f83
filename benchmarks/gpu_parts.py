"""The parts of gpu_check.py, each run as a program: `gpu_parts.py PART ROWS CACHE [--small]`.

A part writes a line of JSON per measurement to the file ROWS, as soon as it has it. A measurement that fails is written
without a value, and the next one follows. CACHE keeps the models with random weights for the next part.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import formats
import gpu_generation
import gpu_training
import machine
import torch
from gpu_results import Check, Rows

TEST = "OnAGPU"
"""What the names of the test classes that need a GPU contain."""


def main() -> None:
    """Run one part."""
    name, rows, cache, *flags = sys.argv[1:]
    is_small = "--small" in flags
    if is_small:
        tiny = dict(n_embd=32, n_layer=2, n_head=2)
        for shapes in (formats.SHAPES, formats.LARGE_SHAPES):
            shapes.update(dict.fromkeys(shapes, tiny))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    PARTS[name](Check(Rows(Path(rows)), Path(cache), is_small, device))


# ---- the machine ----


def describe_machine(check: Check) -> None:
    """Write what the machine is, and the limits that it sets."""
    name = torch.cuda.get_device_name() if check.device == "cuda" else machine.description()["processor"]
    check.rows.add("device", name, device=check.device, machine=machine.description())
    versions = [f"{package} {machine.version_of(package)}" for package in ("torch", "transformers", "triton")]
    check.rows.add("versions", ", ".join([f"Python {platform.python_version()}", *versions]))
    missing = [name for name in ("optuna", "prompt_toolkit", "peft", "psutil", "regex") if find_spec(name) is None]
    check.rows.add("packages of requirements.txt that are missing", ", ".join(missing) or "none of those asked for")
    headers = Path(sysconfig.get_path("include"), "Python.h").exists()
    compiler = shutil.which("gcc") or shutil.which("cc")
    check.rows.add(
        "torch.compile needs", f"compiler {compiler or 'missing'}, Python.h {'there' if headers else 'missing'}"
    )
    if check.device == "cuda":
        with check.rows.attempt("CUDA"):
            describe_gpu(check)
    with check.rows.attempt("copying memory"):
        size = check.sized(2**30, 2**24)
        check.rows.add("a copy reads and writes", machine.copied_bytes_per_second(check.device, size) / 1e12, "TB/s")
    with check.rows.attempt("a product of matrices"):
        flops = machine.product_flops(check.device, check.sized(8192, 512))
        check.rows.add("a product of matrices in 16 bits", flops / 1e12, "TFLOP/s")
    with check.rows.attempt("launching operations"):
        launches(check)


def describe_gpu(check: Check) -> None:
    """Write what decides which code torch runs on the GPU."""
    properties = torch.cuda.get_device_properties(0)
    told = [
        f"{properties.total_memory / 1e9:.0f} GB",
        f"compute capability {properties.major}.{properties.minor}",
        f"CUDA {torch.version.cuda}",
        f"cuDNN {torch.backends.cudnn.version()}",
        f"bf16 {'yes' if torch.cuda.is_bf16_supported(including_emulation=False) else 'no'}",
        f"cuDNN attention {'on' if torch.backends.cuda.cudnn_sdp_enabled() else 'off'} in torch",
    ]
    check.rows.add("GPU", ", ".join(told))


def launches(check: Check) -> None:
    """Write what a small operation costs when the CPU launches it, and in a replayed graph."""
    x = torch.zeros(1, 768, device=check.device)
    count = check.sized(1000, 100)

    def work() -> None:
        for _ in range(count):
            x.add_(1)

    work()
    seconds = min(machine.seconds_of(work, check.device) for _ in range(5))
    check.rows.add("a small operation, launched", 1e6 * seconds / count, "us")
    if check.device == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        graph.replay()
        seconds = min(machine.seconds_of(graph.replay, check.device) for _ in range(5))
        check.rows.add("a small operation, in a graph", 1e6 * seconds / count, "us")


# ---- the tests that need a GPU ----


def run_tests(check: Check) -> None:
    """Run the test classes that need a GPU, and write each failure."""
    folder = formats.ROOT / "tests"
    files = sorted(path for path in folder.rglob("test_*.py") if TEST in path.read_text(encoding="utf-8"))
    names = [str(path.relative_to(formats.ROOT)) for path in files if path.parent.name != "benchmarks"]
    # Other versions of torch and transformers warn of other things: here a warning is no failure.
    flags = ["-p", "no:cacheprovider", "-W", "ignore", "--tb=line", "-rfEs", "-k", TEST]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *flags, *names],
        cwd=formats.ROOT,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # those of the machine are none of ours
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout)
    counts = re.findall(r"(\d+) (passed|failed|skipped|errors?)", done.stdout.splitlines()[-1])
    if not counts:
        raise SystemExit(f"pytest ended with {done.returncode}: {done.stdout.splitlines()[-1]}")
    check.rows.add("tests", ", ".join(f"{number} {kind}" for number, kind in counts))
    for failure in re.findall(r"^(?:FAILED|ERROR) (.*)", done.stdout, flags=re.MULTILINE):
        test, _, message = failure.partition(" - ")
        check.rows.add(test.rpartition("/")[2], None, note=message)


# ---- attention ----


def attention(check: Check) -> None:
    """Write what a new length costs each time it is met, with cuDNN's attention and without, and each backend."""
    for name, is_on in (("on", True), ("off", False)):
        with check.rows.attempt(f"attention of a new length, cuDNN {name}"):
            torch.backends.cuda.enable_cudnn_sdp(is_on)
            value, lengths = new_lengths(check)
            check.rows.add(f"attention of a new length, cuDNN {name}", value, "ms", f"mean of {lengths} lengths")
    if check.device == "cuda":
        for rows, length in ((1, 128), (1, 1024), (256, 256)):
            for backend in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"):
                for is_masked in (True, False):
                    what = f"{backend}, {rows} x {length} keys, {'with' if is_masked else 'without'} a mask"
                    with contextlib.suppress(RuntimeError):  # a backend that cannot do this
                        check.rows.add(what, one_attention(backend, rows, length, is_masked), "us")


def new_lengths(check: Check) -> tuple[float, int]:
    """Return the milliseconds of an attention whose keys are longer than before, and how many lengths were tried."""
    dtype = torch.float16 if check.device == "cuda" else torch.float32
    query = torch.randn(5, 12, 1, 64, device=check.device, dtype=dtype)
    keys = torch.randn(5, 12, 400, 64, device=check.device, dtype=dtype)
    lengths = range(300, check.sized(340, 304))

    def work() -> None:
        for length in lengths:
            torch.nn.functional.scaled_dot_product_attention(query, keys[:, :, :length], keys[:, :, :length])

    torch.nn.functional.scaled_dot_product_attention(query, keys, keys)
    return 1e3 * machine.seconds_of(work, check.device) / len(lengths), len(lengths)


def one_attention(backend: str, rows: int, length: int, is_masked: bool) -> float:
    """Return the microseconds of the attention of a decode step of gpt2, replayed as a graph."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    query = torch.randn(rows, 12, 1, 64, device="cuda", dtype=torch.float16)
    keys, values = torch.randn(2, rows, 12, length, 64, device="cuda", dtype=torch.float16)
    mask = torch.zeros(rows, 1, 1, length, device="cuda", dtype=torch.float16) if is_masked else None
    with sdpa_kernel(getattr(SDPBackend, backend)):

        def work() -> None:
            for _ in range(20):
                torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)

        work()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
    graph.replay()
    return 1e6 * min(machine.seconds_of(graph.replay, "cuda") for _ in range(3)) / 20


PARTS: dict[str, Callable[[Check], None]] = {
    "machine": describe_machine,
    "tests": run_tests,
    "attention": attention,
    **gpu_generation.PARTS,
    **gpu_training.PARTS,
}

if __name__ == "__main__":
    main()
