"""Compile kernels.c for this machine, and cache the result for this user. Nothing here needs torch to be imported."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
from pathlib import Path

from gpt2tg.io.atomic import replacing

SOURCE = Path(__file__).with_name("kernels.c")

COMPILERS = ("cc", "gcc", "clang")

# The source spells out every fused multiply-add, and the compiler adds none: its choice differs from loop to loop, so
# that results would depend on how many tokens are read at once.
FLAGS: tuple[str, ...] = (
    *("-O3", "-march=native", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
    *("-shared", "-fPIC"),
)


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
    parts = (*(path.read_text(encoding="utf-8") for path in sources), " ".join(FLAGS), _machine())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _machine() -> str:
    """Return the processor, its features, and torch's version."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = "".join(sorted({line for line in lines if line.startswith(("flags", "model name", "Features"))}))
    except OSError:
        processor = platform.processor()
    return f"{platform.machine()} {processor} {(_torch_directory() / 'version.py').read_text(encoding='utf-8')}"


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
    with contextlib.suppress(OSError):
        return [str(path) for path in sorted((_torch_directory() / "lib").glob("libgomp*.so*"))[:1]]
    return []


def find_compiler() -> str | None:
    """Return the path of a C compiler; None if there is none."""
    return next(filter(None, map(shutil.which, COMPILERS)), None)


def compile_library(compiler: str, path: Path) -> None:
    """Compile the kernels to a file that appears complete, so that no process ever loads a truncated one.

    Raises:
        OSError, subprocess.SubprocessError: the compiler failed, took over two minutes, or the file is not writable.
    """
    with replacing(path) as draft:
        subprocess.run(
            [compiler, *FLAGS, str(SOURCE), "-o", str(draft), *openmp_libraries(), "-lm"],
            check=True,
            capture_output=True,
            timeout=120,
        )
