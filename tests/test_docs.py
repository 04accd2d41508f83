"""README and docs: every command that needs nothing of the reader runs, the others parse, and links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import finetune_gpt2
import generate_from_finetuned
import gpt2_text_generation
import text_generation_demo
from gpt2tg.errors import UserError

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MODEL_CARD = ROOT / "gpt2tg" / "bundled" / "gpt2-tiny" / "README.md"
SCRIPTS = {
    f"{script.__name__}.py": script
    for script in (finetune_gpt2, generate_from_finetuned, gpt2_text_generation, text_generation_demo)
}

# Runs of the docs are for readers with a minute; here a twentieth of their steps, prompts and seconds does.
SHORTENED = ("--max_steps", "--eval_steps", "--budget", "--num_prompts")

# Flags of other programs that the pages name.
FOREIGN = {
    "--x_y",
    "--rivals",
    "--quick",
    "--small",
    "--runs",
    "--local_dir",
    "--node_rank",
    "--nproc_per_node",
    "--num_processes",
    "--config_file",
    "--work",
    "--shape",
    "--repeats",
}

# Lines of sample_data.txt that the commands find here.
LINES = 28


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    content = page.read_text(encoding="utf-8")
    return [
        Block(page, content.count("\n", 0, found.start()) + 1, found[1], found[2])
        for found in re.finditer(r"^```(\w*)\n(.*?)^```", content, flags=re.DOTALL | re.MULTILINE)
    ]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


# ---- commands that run as they stand ----


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a reader has before him: the top of a checkout, with a shorter sample_data.txt."""
    for script in SCRIPTS:
        shutil.copy(ROOT / script, tmp_path)
    for folder in ("gpt2tg", "requirements.txt"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    lines = (ROOT / "sample_data.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "sample_data.txt").write_text("".join(lines[:LINES]), encoding="utf-8")
    return tmp_path


def shortened(commands: str) -> str:
    """Return the commands with a twentieth of the steps, prompts and seconds."""

    def less(found: re.Match[str]) -> str:
        return f"{found[1]} {max(2, int(found[2]) // 20)}"

    commands = re.sub(rf"({'|'.join(SHORTENED)}) (\d+)", less, commands)
    return commands.replace("head -n 1000", f"head -n {LINES - 20}").replace("tail -n 156", "tail -n 20")


def pages_with(language: str) -> list[Path]:
    """Return the pages that have a block of this language."""
    return [page for page in PAGES if any(block.language == language for block in blocks(page))]


@pytest.mark.parametrize("page", pages_with("sh"), ids=name)
def test_commands_run_in_the_order_of_the_page(page: Path, forked_python: Path, checkout: Path) -> None:
    environment = {**os.environ, "PATH": f"{forked_python.parent}:{os.environ['PATH']}", "TQDM_DISABLE": "1"}
    for block in blocks(page):
        if block.language != "sh":
            continue
        run = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", shortened(block.text)],
            cwd=checkout,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert run.returncode == 0, f"{name(page)}, line {block.line}: {run.stderr}"
        assert "is not used" not in run.stderr, f"{name(page)}, line {block.line}: {run.stderr}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.language == "python" for b in blocks(page))], ids=name
)
def test_python_examples_run(page: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a page share their names, as in one session of Python."""
    monkeypatch.chdir(checkout)
    namespace: dict[str, object] = {}
    for block in blocks(page):
        if block.language == "python":
            exec(compile(block.text, f"{name(page)}, block of line {block.line}", "exec"), namespace)


# ---- commands that need a network, a GPU or a file of the reader's ----


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield each command of ours in any block, as (where it stands, words)."""
    for page in [*PAGES, MODEL_CARD]:
        for block in blocks(page):
            for line in block.text.replace("\\\n", " ").splitlines():
                if not any(script in line for script in SCRIPTS):
                    continue
                reader = shlex.shlex(line, posix=True, punctuation_chars=True)
                reader.whitespace_split = True
                words = list(reader)
                for start, word in enumerate(words):
                    if word in SCRIPTS:
                        ends = (i for i in range(start, len(words)) if words[i] and set(words[i]) <= set("|<>;&()"))
                        yield f"{name(page)}, line {block.line}", words[start : next(ends, len(words))]


@pytest.mark.parametrize(("place", "words"), [pytest.param(*command, id=f"{command[0]}: {' '.join(command[1])[:60]}")
                                              for command in commands()])  # fmt: skip
def test_commands_parse(place: str, words: list[str]) -> None:
    script, *flags = words
    try:
        SCRIPTS[script].parser().parse(flags)
    except UserError as error:
        pytest.fail(f"{place}: {error}")


# ---- words in the text ----


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [*PAGES, MODEL_CARD], ids=name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, heading = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{name(page)}: {target}"
        if heading:
            assert heading in headings(file), f"{name(page)}: {target}"


def headings(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_flags_and_files_that_are_named_exist(page: Path) -> None:
    known = {flag for script in SCRIPTS.values() for flag in script.parser().takes}
    text = prose(page)
    for flag in re.findall(r"`(--[a-z][a-z][\w-]*)", text):
        assert flag.replace("-", "_").replace("__", "--", 1) in known | FOREIGN, f"{name(page)}: {flag}"
    for path in re.findall(r"`((?:gpt2tg|tests|benchmarks|docs)/[\w/-]*(?:/|\.\w+))`", text):
        assert (ROOT / path).exists(), f"{name(page)}: {path}"
