"""Who may import whom: the arrows of the house, read from the source."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gpt2tg"
ARCHITECTURE = ROOT / "docs" / "architecture.md"

HEAVY = {"torch", "transformers", "datasets", "accelerate", "peft", "tokenizers", "safetensors", "huggingface_hub"}

# Room -> the rooms of ours and the libraries that it may know. The standard library is everyone's.
RULES: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "options": {"options", "errors"},
    "io": {"io", "errors"} | {"wcwidth"},
    "cli": {"cli", "__init__", "errors", "options", "io"} | {"yaml"},
    "reading": {"reading", "errors", "io"} | {"pyarrow"},
    "checkpoint": {"checkpoint", "errors", "options", "io"}
    | {"huggingface_hub", "jinja2", "safetensors", "tokenizers", "torch"},
    "engine": {"engine", "errors", "io", "checkpoint"} | {"torch", "triton"},
    "decoding": {"decoding"} | {"numpy", "torch"},
    "generation": {"generation", "errors", "options", "checkpoint", "engine", "decoding"}
    | {"psutil", "regex", "torch"},
    "inspection": {"inspection", "errors", "io", "checkpoint", "engine", "decoding", "generation"} | {"torch"},
    "batch": {"batch", "errors", "options", "io", "reading", "generation", "inspection"} | {"torch", "tqdm"},
    "comparison": {"comparison", "errors", "options", "io", "reading", "generation", "inspection", "batch"}
    | {"jinja2", "markupsafe", "matplotlib", "numpy", "sacrebleu"},
    "tuning": {"tuning", "errors", "options", "io", "generation", "comparison"}
    | {"markupsafe", "matplotlib", "optuna"},
    "session": {
        "session",
        "errors",
        "options",
        "io",
        "reading",
        "checkpoint",
        "generation",
        "inspection",
        "batch",
        "comparison",
    }
    | {"platformdirs", "prompt_toolkit", "wcwidth"},
    "desk": {"desk", "errors", "options", "reading", "session"} | {"platformdirs"},
    "training": {
        "training",
        "__init__",
        "errors",
        "options",
        "io",
        "reading",
        "checkpoint",
        "engine",
        "generation",
        "inspection",
    }
    | {
        "accelerate",
        "bitsandbytes",
        "datasets",
        "filelock",
        "huggingface_hub",
        "matplotlib",
        "numpy",
        "optuna",
        "peft",
        "psutil",
        "pyarrow",
        "safetensors",
        "tokenizers",
        "torch",
        "tqdm",
        "transformers",
    },
    "cache": {"errors", "io", "training"},
    "serving": {
        "serving",
        "__init__",
        "errors",
        "options",
        "io",
        "reading",
        "checkpoint",
        "decoding",
        "generation",
        "inspection",
        "batch",
        "comparison",
        "session",
        "desk",
    }
    | {"prometheus_client", "starlette", "uvicorn"},
    "export": {"export", "errors", "io", "checkpoint"} | {"ctranslate2", "gguf", "torch", "transformers"},
    "selftest": {"__init__", "options", "decoding", "generation"} | {"tokenizers", "torch", "transformers"},
    "commands": {
        "commands",
        "errors",
        "options",
        "io",
        "cli",
        "reading",
        "checkpoint",
        "engine",
        "generation",
        "inspection",
        "batch",
        "comparison",
        "tuning",
        "session",
        "desk",
        "training",
        "serving",
        "export",
    },
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


# Module name -> file.
NAMES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Rooms of ours and outside packages that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "gpt2tg":
            inside = {alias.name for alias in node.names}
            found |= {f"gpt2tg.{n}" if (PACKAGE / n).exists() or (PACKAGE / f"{n}.py").exists() else "gpt2tg"
                      for n in inside}  # fmt: skip
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    rooms = set()
    for name in found:
        first, *rest = name.split(".")
        if first == "gpt2tg":
            rooms.add(rest[0] if rest else "__init__")
        elif first not in sys.stdlib_module_names:
            rooms.add(first)
    return rooms


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_arrow_points_the_wrong_way(path: Path) -> None:
    assert imported(path) <= RULES[room_of(path)]


def test_each_arrow_is_used() -> None:
    used: dict[str, set[str]] = {room: set() for room in RULES}
    for path in modules():
        used[room_of(path)] |= imported(path)
    assert {room: rule - used[room] - {room} for room, rule in RULES.items() if not rule <= used[room] | {room}} == {}


def imported_modules(path: Path) -> set[str]:
    """Return the modules of ours that a module imports, lazily or not."""
    names = {
        f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in NAMES else node.module
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for alias in node.names
    }
    return names & NAMES.keys()


def test_no_module_imports_itself_through_others() -> None:
    """Lazy imports count: they must not hide a circle. `from gpt2tg import load` is lazy by design."""
    graph = {name: imported_modules(path) - {"gpt2tg"} for name, path in NAMES.items()}
    order = graphlib.TopologicalSorter(graph)
    order.prepare()  # raises a CycleError that names the circle


def test_modules_and_functions_stay_small() -> None:
    assert {name for name, path in NAMES.items() if len(path.read_text(encoding="utf-8").splitlines()) > 400} == set()
    functions = {
        f"{name}.{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for name, path in NAMES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: lines for name, lines in functions.items() if lines > 45} == {}


def table() -> str:
    """Return the rules as the rows of the table in docs/architecture.md."""

    def listed(names: Iterable[str]) -> str:
        return ", ".join(f"`{name}`" for name in names if name != "__init__") or "nothing"

    rows = []
    for room, rule in RULES.items():
        ours = [name for name in RULES if name in rule - {room}]
        rows.append(f"| `{room}` | {listed(ours)} | {listed(sorted(rule - RULES.keys()))} |")
    return "\n".join(rows[1:]) + "\n"  # not the package itself, which imports nothing before it is asked


def with_table(page: str) -> str:
    """Return the page with the table that the rules give."""
    return re.sub(r"(?<=\|---\|---\|---\|\n)(\| `\w+` \|.*\n)+(?=\| scripts )", table(), page)


def test_the_architecture_page_has_the_table_of_the_rules() -> None:
    page = ARCHITECTURE.read_text(encoding="utf-8")
    assert with_table(page) == page, "run python tests/test_imports.py"
    assert table() in page


def test_scripts_are_never_imported() -> None:
    scripts = {path.stem for path in ROOT.glob("*.py")}
    assert not {path for path in modules() if imported(path) & scripts}


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("gpt2tg", HEAVY),
        ("gpt2tg.cli", HEAVY),
        (", ".join(f"gpt2tg.commands.{path.stem}" for path in (PACKAGE / "commands").glob("[a-z]*.py")), HEAVY),
        ("gpt2tg.engine.cpu.startup", HEAVY),
        ("gpt2tg.reading", HEAVY | {"numpy", "pyarrow"}),
        ("gpt2tg.generation.generator", {"transformers", "datasets", "accelerate", "peft", "regex", "triton"}),
        ("gpt2tg.cache", {"torch", "transformers", "datasets", "pyarrow"}),
        ("gpt2tg.session", {"transformers", "datasets", "accelerate", "peft", "prompt_toolkit", "platformdirs"}),
        ("gpt2tg.comparison", {"transformers", "datasets", "accelerate", "peft"}),
    ],
)
def test_what_importing_a_module_loads(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted({absent!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == ""


def test_public_names_are_there() -> None:
    import gpt2tg

    assert all(getattr(gpt2tg, name) is not None for name in gpt2tg.__all__)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = gpt2tg.nothing_of_the_kind


if __name__ == "__main__":
    ARCHITECTURE.write_text(with_table(ARCHITECTURE.read_text(encoding="utf-8")), encoding="utf-8")
