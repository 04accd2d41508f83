"""The text of `--help` and `--help-all`: flags under headings, in two columns."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence

from gpt2tg.cli.flags import Flag

# The headings of the groups of options, in their order on the page.
GROUPS = {
    "task": "task",
    "model": "model",
    "data": "data",
    "prompts": "prompts and output",
    "decoding": "decoding",
    "beams": "beams",
    "repetition": "repetition and words",
    "output": "length and number of texts",
    "inspection": "probabilities",
    "evaluation": "evaluation",
    "training": "training",
    "memory": "memory and speed of training",
    "run": "output directory and log",
    "from scratch": "training from scratch",
    "samples": "samples after training",
    "export": "export without training",
    "comparison": "comparison",
    "tuning": "tuning",
    "server": "server",
}

MODEL_TABLE = """\
model names:
  gpt2-tiny    8.5M parameters, bundled: works offline at once
  distilgpt2    82M   0.35 GB to download
  gpt2         124M   0.55 GB
  gpt2-medium  355M   1.5 GB
  gpt2-large   774M   3.2 GB
  gpt2-xl      1.5B   6.4 GB
"""

WIDEST = 110
# The column at which the descriptions begin.
COLUMN = 32


def help_text(
    *,
    usage: str,
    description: str,
    flags: Sequence[Flag],
    total: int,
    switches: Mapping[str, str],
    task: str | None,
    tasks: Sequence[str],
    examples: str,
) -> str:
    """Return the help of a script.

    Args:
        flags: the flags to show.
        total: how many flags there are; if more than are shown, a line says how to see them.
        switches: the flags of every script, with their help texts.
        task: the task whose flags these are, if the script has tasks and one was chosen.
    """
    width = min(shutil.get_terminal_size().columns, WIDEST)
    parts = [f"usage: {usage}\n", f"{description}\n"]
    general = [(name if " " in name else name.replace("_", "-"), meaning) for name, meaning in switches.items()]
    parts.append(_section("options", general, width))
    for heading, group in grouped(flags, task):
        rows = [(f"{flag.name} {flag.value}".rstrip(), flag.help(task)) for flag in group]
        parts.append(_section(heading, rows, width))
    hints = list(_hints(len(flags), total, task, tasks))
    return "\n".join([*parts, *([*hints, ""] if hints else []), examples, MODEL_TABLE])


def grouped(flags: Iterable[Flag], task: str | None) -> Iterator[tuple[str, list[Flag]]]:
    """Yield each heading with its flags, in the order of the headings; those without flags are left out."""
    groups: dict[str, list[Flag]] = {name: [] for name in GROUPS}
    for flag in flags:
        groups[flag.in_task(task)[0].field.metadata["group"]].append(flag)
    return ((GROUPS[name], group) for name, group in groups.items() if group)


def _hints(shown: int, total: int, task: str | None, tasks: Sequence[str]) -> Iterator[str]:
    if shown < total:
        yield f"{shown} of {total} flags are shown; {f'--task {task} ' if task else ''}--help-all shows all."
    if tasks and task is None:
        yield f"--task {tasks[0]} --help shows the flags of that task; the other tasks are {' and '.join(tasks[1:])}."


def _section(heading: str, rows: Iterable[tuple[str, str]], width: int) -> str:
    return "\n".join([f"{heading}:", *(line for name, text in rows for line in _entry(name, text, width)), ""])


def _entry(name: str, text: str, width: int) -> list[str]:
    """Return the lines of one flag. A name that is too long for its column has a line of its own."""
    lines = textwrap.wrap(text, max(width - COLUMN, 20), break_long_words=False, break_on_hyphens=False)
    first = f"  {name}"
    if len(first) + 2 > COLUMN:
        return [first, *(" " * COLUMN + line for line in lines)]
    return [f"{first:<{COLUMN}}{lines[0]}", *(" " * COLUMN + line for line in lines[1:])]
