"""The reference of all flags, docs/cli.md, generated from the parsers of the scripts.

Run `python -m gpt2tg.cli.reference > docs/cli.md` at the top of the checkout to bring the page up to date.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator

from gpt2tg.cli.flags import Flag, Meaning
from gpt2tg.cli.help import grouped
from gpt2tg.cli.parser import FILES, SWITCHES, Parser
from gpt2tg.io.streams import speak_utf8, write_out

SCRIPTS = ("finetune_gpt2", "generate_from_finetuned", "gpt2_text_generation", "text_generation_demo")

INTRODUCTION = """\
# Command line reference

Every flag of every script, with its default. This page is generated from the parsers: run
`python -m gpt2tg.cli.reference > docs/cli.md` after a change.

`--x-y` and `--x_y` are the same flag. Flags cannot be abbreviated. The word after a flag that needs a value is its
value, whatever it begins with. A flag with `FILE [FILE ...]` takes several values and may be repeated. Every script
also has these flags:
"""


def reference() -> str:
    """Return the page: a section for each script, a table for each group of flags."""
    switches = [(_code(name.replace("_", "-")), text) for name, text in SWITCHES.items()]
    switches += [(_code(f"{name} FILE"), text) for name, text in FILES.items()]
    general = _table(("Flag", "What it does"), iter(switches))
    parsers = [importlib.import_module(name).parser() for name in SCRIPTS]
    return "\n".join([INTRODUCTION, *general, *(line for parser in parsers for line in _script(parser))])


def _script(parser: Parser) -> Iterator[str]:
    yield from ("", f"## {parser.prog}", "", " ".join(parser.description.split()))
    for task in parser.tasks or (None,):
        level = "###"
        if task:
            yield from ("", f"### --task {task}")
            level = "####"
        for heading, flags in grouped(parser.flags(task), task):
            yield from ("", f"{level} {heading.capitalize()}", "")
            rows = (_row(flag, flag.in_task(task)[0]) for flag in flags)
            yield from _table(("Flag", "Value", "Default", "What it does"), rows)


def _row(flag: Flag, meaning: Meaning) -> tuple[str, ...]:
    return _code(flag.name), _code(flag.value), *map(_with_flags_as_code, (meaning.shown_default, meaning.help))


def _with_flags_as_code(text: str) -> str:
    return re.sub(r"--\w+", r"`\g<0>`", text)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _table(heads: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    for row in (heads, ("---",) * len(heads), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


if __name__ == "__main__":
    speak_utf8()
    write_out(f"{reference()}\n")
