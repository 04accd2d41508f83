"""Compiling the kernels, caching the library, and what happens where neither is possible."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import kernels_here

from gpt2tg.engine.cpu import compiler, kernels
from gpt2tg.generation.generator import load
from gpt2tg.options import decoding_options

GREEDY = {"decoding": "greedy", "max_new_tokens": 20}


@pytest.fixture(autouse=True, scope="module")
def compiled() -> kernels.Kernels:
    """The kernels. If they do not compile where they should, the tests fail instead of being skipped."""
    return kernels_here()


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache directory. The kernels are loaded anew, and compiled without optimisation: nothing is computed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(kernels.SWITCH, raising=False)
    kernels.load.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "FLAGS", ("-O0", *(flag for flag in compiler.FLAGS if flag != "-O3")))
        yield tmp_path
    kernels.load.cache_clear()


def greedy_in_a_subprocess(environment: dict[str, str], model_dir: Path) -> str:
    """Generate a greedy text in a process of its own. Return its ids, and whether the kernels or torch computed it."""
    code = f"""
from gpt2tg.engine.cpu import kernels
from gpt2tg.generation.generator import load
from gpt2tg.options import decoding_options
(sample,) = load({str(model_dir)!r}).generate("The fox", decoding_options({GREEDY!r}))
print(*sample.ids, "by", "torch" if kernels.load() is None else "kernels")
"""
    inherited = {name: value for name, value in os.environ.items() if name != kernels.SWITCH}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**inherited, "PYTHONPATH": str(Path(__file__).parents[3]), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_without_a_compiler_torch_writes_the_same_text(model_dir: Path, tmp_path: Path) -> None:
    (sample,) = load(str(model_dir)).generate("The fox", decoding_options(GREEDY))
    printed = greedy_in_a_subprocess({"PATH": "", "XDG_CACHE_HOME": str(tmp_path)}, model_dir)
    assert printed == " ".join(map(str, sample.ids)) + " by torch"


def test_switch_turns_kernels_off(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.SWITCH, "0")
    assert kernels.load() is None
    assert list(fresh.iterdir()) == []


def test_kernels_are_compiled_once(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.load() is not None
    assert [path.suffix for path in (fresh / "gpt2tg").iterdir()] == [".so"]
    monkeypatch.setattr(compiler, "compile_library", lambda *_: pytest.fail("compiled again"))
    kernels.load.cache_clear()
    assert kernels.load() is not None


@pytest.mark.parametrize("content", [b"", b"no library", b"\x7fELF" + bytes(200)])
def test_broken_library_is_compiled_anew(fresh: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    compiler.compiled_file().write_bytes(content)
    monkeypatch.setattr(compiler, "COMPILERS", ())
    assert kernels.load() is None
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(fresh))
    kernels.load.cache_clear()
    assert kernels.load() is not None


def test_failing_compiler_leaves_no_file(fresh: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:  # ends before the one of `fresh`
        patch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "--no-such-flag"))
        assert kernels.load() is None
    assert list((fresh / "gpt2tg").iterdir()) == []


def test_unwritable_cache_directory_means_no_kernels(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fresh / "file").write_text("no directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(fresh / "file"))
    assert kernels.load() is None


def test_user_without_a_home_has_no_kernels(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert kernels.load() is None


@pytest.mark.parametrize("name", sorted(path.name for path in compiler.SOURCE.parent.glob("*.[ch]")))
def test_fingerprint_depends_on_every_c_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = compiler.fingerprint()
    for path in compiler.SOURCE.parent.glob("*.[ch]"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(compiler, "SOURCE", tmp_path / compiler.SOURCE.name)
    assert compiler.fingerprint() == before
    with (tmp_path / name).open("a") as file:
        file.write("/* changed */\n")
    assert compiler.fingerprint() != before


def pretend(monkeypatch: pytest.MonkeyPatch, machine: str, system: str, accepted: str = "") -> list[str]:
    """Pretend another machine, whose compiler accepts commands with certain words. Returns a list of its commands."""
    commands: list[str] = []

    def run(command: list[str], **_: object) -> None:
        commands.append(" ".join(command))
        if accepted not in commands[-1]:
            raise subprocess.CalledProcessError(1, command)
        Path(command[command.index("-o") + 1]).touch()

    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(compiler, "openmp_libraries", lambda: ["/torch/lib/openmp"])
    return commands


@pytest.mark.parametrize(
    ("machine", "system", "accepted", "attempts"),
    [
        ("x86_64", "linux", "-march=native", 1),
        ("aarch64", "linux", "-mcpu=native", 1),
        ("aarch64", "linux", "-march=native", 2),
        ("arm64", "darwin", "-mcpu=native", 1),
        ("arm64", "darwin", "cc -O3", 3),  # the compiler's own choice
    ],
)
def test_flags_for_the_processor_are_tried_in_turn(
    machine: str, system: str, accepted: str, attempts: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands = pretend(monkeypatch, machine, system, accepted)
    compiler.compile_library("cc", tmp_path / "kernels.so")
    assert len(commands) == attempts
    assert (tmp_path / "kernels.so").exists()


def test_on_x86_nothing_but_this_processor_is_compiled_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands = pretend(monkeypatch, "x86_64", "linux", "nothing is accepted")
    with pytest.raises(subprocess.CalledProcessError):
        compiler.compile_library("cc", tmp_path / "kernels.so")
    assert len(commands) == 1
    assert list(tmp_path.iterdir()) == []


def test_openmp_is_linked_except_on_macos(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There, the library's own path is one of the machine on which torch was built."""
    commands = pretend(monkeypatch, "aarch64", "linux")
    compiler.compile_library("cc", tmp_path / "linux.so")
    on_macos = pretend(monkeypatch, "arm64", "darwin")
    compiler.compile_library("cc", tmp_path / "macos.so")
    assert "-fopenmp" in commands[0]
    assert "/torch/lib/openmp" in commands[0]
    assert "-Xpreprocessor -fopenmp -undefined dynamic_lookup" in on_macos[0]
    assert "/torch/lib/openmp" not in on_macos[0]


def test_macos_without_an_openmp_library_has_no_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands = pretend(monkeypatch, "arm64", "darwin")
    monkeypatch.setattr(compiler, "openmp_libraries", list)
    with pytest.raises(FileNotFoundError, match="OpenMP"):
        compiler.compile_library("cc", tmp_path / "kernels.so")
    assert commands == []


@pytest.mark.parametrize(
    ("system", "file"),
    [
        ("linux", "torch/lib/libgomp.so.1"),
        ("linux", "torch/lib/libgomp-a34b3233.so.1"),
        ("linux", "torch.libs/libgomp-d22c30c5.so.1.0.0"),
        ("darwin", "torch/lib/libomp.dylib"),
    ],
)
def test_openmp_library_of_torch_is_found(
    system: str, file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    for path in ("torch/__init__.py", "torch/version.py", file):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(compiler, "_torch_directory", lambda: tmp_path / "torch")
    assert compiler.openmp_libraries() == [str(tmp_path / file)]


def test_fingerprint_depends_on_the_name_of_apples_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library of an M4 does not run on an M1, to which a backup may bring it."""
    pretend(monkeypatch, "arm64", "darwin")
    found = set()
    for name in ("Apple M1", "Apple M4"):
        monkeypatch.setattr(compiler, "_sysctl", {"machdep.cpu.brand_string": name}.__getitem__)
        found.add(compiler.fingerprint())
    assert len(found) == 2


def library_file() -> ctypes.CDLL:
    if not compiler.compiled_file().exists():  # compiled by a test with a cache directory of its own
        kernels.load.cache_clear()
        assert kernels.load() is not None
    return ctypes.CDLL(str(compiler.compiled_file()))


def test_struct_that_differs_from_the_library_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Longer(ctypes.Structure):
        _fields_ = (*kernels.Batch._fields_, ("added", ctypes.c_int64))

    kernels.check_interface(library_file())
    monkeypatch.setattr(kernels, "STRUCTS", (*kernels.STRUCTS[:-1], Longer))
    with pytest.raises(AssertionError, match=r"structs\.h"):
        kernels.Kernels(library_file())


@pytest.mark.parametrize(
    ("names", "wrong"),
    [("PRECISIONS", {"fp32": 0, "int8": 1, "fp16": 2}), ("ACTIVATION_NAMES", ("none", "gelu", "gelu_tanh", "relu"))],
)
def test_enum_that_differs_from_the_library_is_an_error(
    names: str, wrong: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, names, wrong)
    with pytest.raises(AssertionError, match=r"_NAMES in structs\.h"):
        kernels.Kernels(library_file())


def test_activation_codes_point_at_their_names() -> None:
    found = {name: kernels.ACTIVATION_NAMES[code] for name, code in kernels.ACTIVATIONS.items()}
    tanh = dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_fast"), "gelu_tanh")
    assert found == {**tanh, "gelu": "gelu", "relu": "relu"}


def test_c_files_have_at_most_110_columns() -> None:
    for path in compiler.SOURCE.parent.glob("*.[ch]"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert len(line) <= 110, f"{path.name} line {number}"


@pytest.mark.skipif(shutil.which("clang-format") is None, reason="clang-format is not installed")
def test_c_files_obey_clang_format() -> None:
    for path in compiler.SOURCE.parent.glob("*.[ch]"):
        formatted = subprocess.run(["clang-format", path], capture_output=True, text=True, check=True).stdout
        assert formatted == path.read_text(encoding="utf-8"), path.name
