"""The package as pip builds and installs it: from its sdist, in an environment without the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from gpt2tg import __version__

ROOT = Path(__file__).parent.parent
ARCHIVE = f"gpt2tg-{__version__}"
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def run(*words: str | Path, cwd: Path, **variables: str) -> str:
    """Run a command that must succeed, and return its stdout."""
    done = subprocess.run(words, cwd=cwd, env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts directory of an environment with the wheel installed, which was built from the sdist."""
    work = tmp_path_factory.mktemp("package")
    source = work / "source"
    shutil.copytree(ROOT / "gpt2tg", source / "gpt2tg", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("*.py"), ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "LICENSE"):
        shutil.copy(path, source)
    run(sys.executable, "-c", BUILD, "build_sdist", work, cwd=source)
    run(sys.executable, "-m", "tarfile", "-e", work / f"{ARCHIVE}.tar.gz", work, cwd=work)
    run(sys.executable, "-c", BUILD, "build_wheel", work, cwd=work / ARCHIVE)

    environment = work / "environment"
    venv.create(environment, symlinks=os.name != "nt", with_pip=False)
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    # Use the dependencies of the environment that runs the tests: installing them again would need a network.
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=work).strip())
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    wheel = work / f"{ARCHIVE}-py3-none-any.whl"
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", "--force-reinstall", wheel, cwd=work)
    return python.parent


def test_installed_command_generates_from_the_bundled_model(installed: Path, tmp_path: Path) -> None:
    words = ("--model_path", "gpt2-tiny", "--prompt", "The old", "--decoding", "greedy", "--max_new_tokens", "4")
    text = run(installed / "generate_from_finetuned", *words, "--num_sequences", "1", cwd=tmp_path)
    assert text.startswith("The old")
    assert len(text.split()) > 2


@pytest.mark.parametrize("name", ["finetune_gpt2", "gpt2_text_generation", "text_generation_demo"])
def test_installed_command_shows_its_version(installed: Path, name: str, tmp_path: Path) -> None:
    assert run(installed / name, "--version", cwd=tmp_path).strip() == f"gpt2tg {__version__}"


def test_installed_package_has_kernels_templates_and_types(installed: Path, tmp_path: Path) -> None:
    where = "import gpt2tg; print(gpt2tg.__path__[0])"
    package = Path(run(installed / "python", "-c", where, cwd=tmp_path).strip())
    assert ROOT not in package.parents
    for name in ("py.typed", "engine/cpu/kernels.c", "bundled/gpt2-tiny/model.safetensors"):
        assert (package / name).is_file(), name
    headers = {path.name for path in (ROOT / "gpt2tg" / "engine" / "cpu").glob("*.h")}
    assert {path.name for path in (package / "engine" / "cpu").glob("*.h")} == headers
    ours = {path.name for path in (ROOT / "gpt2tg" / "comparison" / "templates").iterdir()}
    assert {path.name for path in (package / "comparison" / "templates").iterdir()} == ours
