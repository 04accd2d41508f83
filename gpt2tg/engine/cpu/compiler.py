"""Compile kernels.c for this machine, and cache the result for this user. Nothing here needs torch to be imported."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from gpt2tg.io.atomic import replacing

SOURCE = Path(__file__).with_name("kernels.c")

COMPILERS = ("cc", "gcc", "clang")

# The source spells out every fused multiply-add, and the compiler adds none: its choice differs from loop to loop, so
# that results would depend on how many tokens are read at once. gcc for Arm schedules instructions before it allocates
# registers, and would run out of them; for x86 it does not, and clang ignores the flag.
FLAGS: tuple[str, ...] = (
    *("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-schedule-insns"),
    *("-shared", "-fPIC"),
)

# Flags that select the processor of this machine, by architecture; compilers differ, and the next ones are tried if
# these fail. All processors with 64-bit Arm instructions have NEON. Others are selected by the entry "".
PROCESSOR_FLAGS: dict[str, tuple[tuple[str, ...], ...]] = {
    "aarch64": (("-mcpu=native",), ("-march=native",), ()),
    "": (("-march=native",),),
}

# Flags for OpenMP. Apple's clang knows the pragmas but has no library: torch's, which is loaded already, is found when
# the kernels are loaded.
OPENMP_FLAGS = {
    "darwin": ("-Xpreprocessor", "-fopenmp", "-undefined", "dynamic_lookup"),
    "": ("-fopenmp",),
}


def compiled_file() -> Path:
    """Return where the compiled library for this source and machine is cached.

    Raises:
        OSError: the cache directory is unusable.
    """
    return cache_directory() / f"kernels-{fingerprint()}.so"


def cache_directory() -> Path:
    """Return the user's directory for what was compiled and measured on this machine; create it if it is missing.

    Raises:
        OSError: it is not writable, belongs to another user, or the user has no home directory.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if home.startswith("~"):
        raise FileNotFoundError("the user has no home directory")
    directory = Path(home) / "gpt2tg"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "getuid") and directory.stat().st_uid != os.getuid():
        raise PermissionError(f"{directory} belongs to another user")
    return directory


def fingerprint() -> str:
    """Return a hash of all that the compiled library depends on: the C files, the flags, the processor, torch."""
    sources = [SOURCE, *sorted(SOURCE.parent.glob("*.h"))]
    flags = [" ".join(flags) for flags in flag_sets()]
    parts = (*(path.read_text(encoding="utf-8") for path in sources), *flags, _machine())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _machine() -> str:
    """Return the processor, its features, and torch's version."""
    version = (_torch_directory() / "version.py").read_text(encoding="utf-8")
    return f"{platform.machine()} {_processor()} {version}"


def _processor() -> str:
    """Return the processor's name and features, as far as the system tells them."""
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string")
    names = ("flags", "model name", "Features", "CPU implementer", "CPU part")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(names)}))


def _sysctl(name: str) -> str:
    """Return a text that the kernel of macOS knows under this name; an empty one if it knows none."""
    value, size = ctypes.create_string_buffer(256), ctypes.c_size_t(256)
    failed = ctypes.CDLL(None).sysctlbyname(name.encode(), value, ctypes.byref(size), None, ctypes.c_size_t(0))
    return "" if failed else value.value.decode(errors="replace")


def _torch_directory() -> Path:
    """Return where torch is installed, without importing it."""
    try:
        found = importlib.util.find_spec("torch")
    except ValueError:  # a module named torch without a spec
        found = None
    if found is None or found.origin is None:
        raise FileNotFoundError("torch is not installed as files")
    return Path(found.origin).parent


def openmp_libraries() -> list[str]:
    """Return the path of torch's own OpenMP library, if it has one.

    The kernels must use that one: a second library would start threads of its own, which compete with torch's.
    """
    pattern = "lib*omp*.dylib" if sys.platform == "darwin" else "libgomp*.so*"
    with contextlib.suppress(OSError):
        torch = _torch_directory()
        for directory in (torch / "lib", torch.with_name("torch.libs")):  # the latter in builds for Arm
            if found := sorted(directory.glob(pattern)):
                return [str(found[0])]
    return []


def flag_sets() -> list[list[str]]:
    """Return the flags to compile with, and those to try if the compiler refuses them."""
    machine = {"arm64": "aarch64"}.get(platform.machine(), platform.machine())  # as macOS and Linux call it
    openmp = OPENMP_FLAGS.get(sys.platform, OPENMP_FLAGS[""])
    return [[*processor, *FLAGS, *openmp] for processor in PROCESSOR_FLAGS.get(machine, PROCESSOR_FLAGS[""])]


def find_compiler() -> str | None:
    """Return the path of a C compiler; None if there is none."""
    return next(filter(None, map(shutil.which, COMPILERS)), None)


def compile_library(compiler: str, path: Path) -> None:
    """Compile the kernels to a file that appears complete, so that no process ever loads a truncated one.

    Raises:
        OSError, subprocess.SubprocessError: the compiler failed, took over two minutes, or the file is not writable;
            or there is no OpenMP library on macOS, whose compiler has none.
    """
    libraries = openmp_libraries()
    if sys.platform == "darwin" and not libraries:
        raise FileNotFoundError("torch has no OpenMP library of its own")
    linked = [] if sys.platform == "darwin" else libraries
    with replacing(path) as draft:
        command = [str(SOURCE), "-o", str(draft), *linked, "-lm"]
        *first, last = [[compiler, *flags, *command] for flags in flag_sets()]
        if not any(_succeeds(attempt) for attempt in first):
            _run(last)


def _succeeds(command: list[str]) -> bool:
    try:
        _run(command)
    except subprocess.CalledProcessError:
        return False
    return True


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=120)
