"""Compile the kernels for several Arm processors and run their tests under emulation: `make test-arm`, on Debian.

Python, numpy and pytest for Arm come from the package archive of this system. They are unpacked into a directory, not
installed, so that neither root nor a container is needed. On an Arm machine itself, `make test` tests the kernels.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from gpt2tg.engine.cpu import compiler

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64-static"
NEEDED = {COMPILER: "gcc-aarch64-linux-gnu", EMULATOR: "qemu-user-static", "apt-get": "apt", "dpkg-deb": "dpkg"}

ARM_PACKAGES = ("python3-numpy", "python3-pytest", "libgomp1")
LIBRARIES = "/usr/lib/aarch64-linux-gnu"

# What the compiler may use, and a processor that has just that: the first 64-bit one; Amazon's Graviton 2, close to
# Apple's; and all that the emulator knows, with SVE and 8-bit matrix products.
PROCESSORS = {
    "armv8-a": "cortex-a53",
    "armv8.2-a+dotprod+fp16": "neoverse-n1",
    "armv8.6-a+sve": "max,pauth-impdef=on",
}


def unpack_python(directory: Path) -> Path:
    """Download Python for Arm and all that it needs, and return the directory that holds its `usr`."""
    system, archives = directory / "system", directory / "cache" / "archives"
    if (system / "complete").exists():
        return system
    for part in ("lists/partial", "cache/archives/partial"):
        (directory / part).mkdir(parents=True, exist_ok=True)
    (directory / "status").touch()  # no package is installed, so that all are downloaded
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "",
        "Dir::State": directory,
        "Dir::State::status": directory / "status",
        "Dir::Cache": directory / "cache",
        "Debug::NoLocking": "true",
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in settings.items())]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "--yes", "--download-only", "install", *ARM_PACKAGES], check=True, stdout=sys.stderr)
    for package in sorted(archives.glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", package, system], check=True)
    (system / "complete").touch()
    return system


def compile_kernels(features: str, directory: Path) -> Path:
    """Compile the kernels with the flags of `compiler`, and return the library."""
    library = directory / f"kernels-{features}.so"
    flags = [f"-march={features}", *compiler.FLAGS, *compiler.OPENMP_FLAGS[""], "-Wall", "-Wextra", "-Werror"]
    subprocess.run([COMPILER, *flags, compiler.SOURCE, "-o", library, "-lm"], check=True)
    return library


def run_tests(processor: str, library: Path, system: Path, directory: Path, arguments: list[str]) -> int:
    """Run the tests on an emulated processor, and return pytest's exit code."""
    environment = {
        "PYTHONPATH": f"{ROOT}:{HERE}",
        "PYTHONPYCACHEPREFIX": str(directory / "pycache"),
        "GPT2TG_TESTED_KERNELS": str(library),
        "OPENBLAS_NUM_THREADS": "1",
    }
    emulator = [EMULATOR, "-cpu", processor, "-L", system, "-E", f"LD_LIBRARY_PATH={LIBRARIES}/blas:{LIBRARIES}/lapack"]
    # Without the configuration and conftest.py, which need torch.
    options = ["-q", "-c", os.devnull, "--noconftest", "-p", "no:cacheprovider", "-p", "kernels_under_test"]
    command = [*emulator, system / "usr/bin/python3", "-m", "pytest", *options, f"--rootdir={ROOT}", *arguments]
    return subprocess.run([*command, HERE / "test_kernels_by_numpy.py"], env={**os.environ, **environment}).returncode


def main() -> int:
    """Test the kernels on every processor; return 1 if a test failed, and 2 if a program is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=ROOT / ".venv" / "arm", help="holds Python for Arm; 200 MB")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    arguments = parser.parse_args()
    if missing := [package for program, package in NEEDED.items() if not shutil.which(program)]:
        print(f"emulated_arm.py: error: on Debian, run: apt install {' '.join(missing)}", file=sys.stderr)
        return 2
    directory = arguments.directory.resolve()
    system = unpack_python(directory)
    failed = False
    for features, processor in PROCESSORS.items():
        print(f"== {features} on {processor}", flush=True)
        library = compile_kernels(features, directory)
        failed |= run_tests(processor, library, system, directory, arguments.pytest) != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
