"""The notebook: committed without outputs, and running from start to end. Its kernel and its programs are forks."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import FABLES

from gpt2tg.checkpoint.config import read_shape

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[1]
PATH = ROOT / "notebooks" / "finetune_gpt2.ipynb"

# Choices that make every part run, and in little time.
CHOICES = {
    "MODEL": "gpt2-tiny",
    "MORE_FLAGS": "--max_steps 2 --block_size 16 --logging_steps 1",
    "PROMPT": "The owl's map",
    "TEXTS": 2,
    "LENGTH": 4,
    "KEEP": "zip",
}

# What the notebook uses of Google Colab: here the reader uploads six fables, and downloads go to a list.
COLAB = f"""
import sys, types
from pathlib import Path

def upload():
    Path("my fables.txt").write_text({chr(10).join(FABLES * 4)!r}, encoding="utf-8")
    return {{"my fables.txt": b""}}

downloads = []
sys.modules["google.colab"] = colab = types.ModuleType("google.colab")
sys.modules.setdefault("google", types.ModuleType("google")).colab = colab
colab.files = types.SimpleNamespace(upload=upload, download=downloads.append)
colab.drive = None
"""


class Kernel:
    """A running kernel, and the notebook's cells to run in it."""

    def __init__(self, client: Any, folder: Path) -> None:
        self.client, self.folder = client, folder

    def run(self, source: str) -> list[Any]:
        """Run a cell and return its outputs."""
        cells = self.client.nb.cells
        cells.append(nbformat.v4.new_code_cell(source))
        try:
            self.client.execute_cell(cells[-1], len(cells) - 1)
        except nbclient.exceptions.CellExecutionError:
            assert cells[-1].outputs[-1].output_type == "error"
        return cells[-1].outputs

    def run_cell(self, name: str, **choices: object) -> list[Any]:
        """Run a cell of the notebook with other choices and return its outputs."""
        return self.run(with_choices(code_cells()[name], choices))


def code_cells() -> dict[str, str]:
    notebook = nbformat.read(PATH, as_version=4)
    return {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "code"}


def with_choices(source: str, choices: dict[str, object]) -> str:
    """Return a cell as if the reader had made these choices in its form."""

    def chosen(line: re.Match[str]) -> str:
        return f"{line[1]} = {choices[line[1]]!r}  # @param" if line[1] in choices else line[0]

    return re.sub(r"^(\w+) = .*?  # @param", chosen, source, flags=re.MULTILINE)


def printed(outputs: list[Any]) -> str:
    return "".join(output.text for output in outputs if output.output_type == "stream")


def shown(outputs: list[Any], kind: str) -> str:
    return next(output.data[kind] for output in outputs if kind in output.get("data", {}))


@pytest.fixture(scope="module")
def kernel(forked_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """A kernel in a folder of a checkout, which finds no profile or kernel of the user."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    folder = tmp_path_factory.mktemp("notebook")
    for script in ROOT.glob("*.py"):
        shutil.copy(script, folder)
    (folder / "gpt2tg").symlink_to(ROOT / "gpt2tg")
    (folder / "notebooks").mkdir()
    specification = folder / "kernels" / "forks" / "kernel.json"
    specification.parent.mkdir(parents=True)
    words = [str(forked_python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    specification.write_text(json.dumps({"argv": words, "display_name": "forks", "language": "python"}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        patch.setenv("GPT2TG_TESTS_PICTURES", "1")
        patch.setenv("PATH", f"{forked_python.parent}:{os.environ['PATH']}")
        manager = AsyncKernelManager(
            kernel_name="forks",
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(specification.parents[1])]),
        )
        client = nbclient.NotebookClient(
            nbformat.v4.new_notebook(),
            km=manager,
            timeout=120,
            resources={"metadata": {"path": str(folder / "notebooks")}},
        )
        with client.setup_kernel(cleanup_kc=True):
            yield Kernel(client, folder)


@pytest.fixture(scope="module")
def outputs(kernel: Kernel) -> dict[str, list[Any]]:
    """The outputs of all cells, run in order, as on Colab."""
    kernel.run(COLAB)
    found = {name: kernel.run_cell(name, **CHOICES) for name in code_cells()}
    for name, cell in found.items():
        assert not any(output.output_type == "error" for output in cell), f"{name}: {printed(cell)}"
    return found


def test_notebook_is_valid_and_holds_no_results() -> None:
    notebook = nbformat.from_dict(json.loads(PATH.read_text(encoding="utf-8")))
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None


def test_uploaded_text_is_learned(outputs: dict[str, list[Any]], kernel: Kernel) -> None:
    assert "--train_file 'my fables.txt'" in printed(outputs["text"])
    assert "my fables.txt" in (kernel.folder / "my_model" / "run.json").read_text(encoding="utf-8")
    assert re.search(r"validation loss \d", printed(outputs["train"]))


def test_loss_is_shown_as_a_picture(outputs: dict[str, list[Any]]) -> None:
    assert base64.b64decode(shown(outputs["loss"], "image/png")).startswith(b"\x89PNG")


def test_texts_continue_the_prompt(outputs: dict[str, list[Any]]) -> None:
    assert len(re.findall(r"^The owl's map", printed(outputs["generate"]), flags=re.MULTILINE)) == 2


def test_report_is_shown_inline(outputs: dict[str, list[Any]], kernel: Kernel) -> None:
    page = re.search(r'srcdoc="(.*?)"', shown(outputs["compare"], "text/html"), flags=re.DOTALL)
    assert page
    assert html.unescape(page[1]) == (kernel.folder / "report.html").read_text(encoding="utf-8")


def test_downloaded_archive_holds_the_model(outputs: dict[str, list[Any]], kernel: Kernel, tmp_path: Path) -> None:
    assert "my_model.zip" in shown(kernel.run("downloads"), "text/plain")
    with zipfile.ZipFile(kernel.folder / "my_model.zip") as archive:
        assert len(set(archive.namelist())) == len(archive.namelist())
        archive.extractall(tmp_path)
    assert read_shape(tmp_path / "my_model") == read_shape(ROOT / "gpt2tg" / "bundled" / "gpt2-tiny")
    assert (tmp_path / "my_model" / "model.safetensors").is_file()
    assert not list(tmp_path.rglob("checkpoint-*"))


@pytest.mark.parametrize("content", [None, ""], ids=["missing", "empty"])
def test_bad_text_stops_with_one_line(outputs: dict[str, list[Any]], kernel: Kernel, content: str | None) -> None:
    if content is not None:
        (kernel.folder / "mine.txt").write_text(content, encoding="utf-8")
    kernel.run_cell("choices", **CHOICES, TEXT="mine.txt")
    found = kernel.run_cell("text", UPLOAD=False)
    assert re.search(r"error: --train_file .*mine\.txt", printed(found))
    assert found[-1].traceback == ["Stopped: the message above says why."]


def test_gpu_gets_gpt2_in_16_bits(outputs: dict[str, list[Any]], kernel: Kernel) -> None:
    kernel.run_cell("choices", TEXT="missing.txt")
    commands = []
    for has_gpu in (True, False):
        kernel.run(f"torch.cuda.is_available = lambda: {has_gpu}")
        commands.append(printed(kernel.run_cell("text", UPLOAD=False)).splitlines()[0])
    assert "--model_name gpt2 " in commands[0]
    assert "--fp16" in commands[0]
    assert "--model_name gpt2-tiny " in commands[1]
    assert "--fp16" not in commands[1]


def test_setup_without_gpt2tg_asks_for_its_address(kernel: Kernel, tmp_path: Path) -> None:
    kernel.run(f"import importlib.util, os; os.chdir({str(tmp_path)!r}); find_spec = importlib.util.find_spec")
    kernel.run("importlib.util.find_spec = lambda name: None")
    found = kernel.run_cell("setup")
    kernel.run(f"importlib.util.find_spec = find_spec; os.chdir({str(kernel.folder)!r})")
    assert len(found) == 1
    assert "into SOURCE" in found[0].traceback[0]
