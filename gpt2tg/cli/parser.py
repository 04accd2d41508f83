"""The parser of a script: flags made from option classes, and the command line read into values."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

from gpt2tg import __version__
from gpt2tg.cli.config import merged, read_config
from gpt2tg.cli.flags import Flag, Meaning
from gpt2tg.cli.help import help_text
from gpt2tg.cli.words import Values, pair_values
from gpt2tg.errors import UserError, did_you_mean
from gpt2tg.io.streams import notice, write_out
from gpt2tg.options import Options, only

OptionsT = TypeVar("OptionsT", bound=Options)

# Flags of every script, with their help texts.
FILES = {
    "--config": "read flags from a recipe: a YAML file, or the run.json of an earlier run; other flags win over it",
    "--save_config": "save the flags of this command as a recipe, and run it",
}
SWITCHES = {
    "--help": "show the most common flags and exit",
    "--help_all": "show all flags and exit",
    "--version": "show the version and exit",
    "--debug": "show the traceback of an error",
}


class Parser:
    """The flags of a script. `--x-y` stands for `--x_y`, flags cannot be abbreviated, errors fit in one line.

    Args:
        prog: the name of the script.
        description: what it does.
        examples: commands to show at the end of the help.
        common: the flags that `--help` shows, by option name; if left out, those whose fields have `is_common`.
    """

    def __init__(self, *, prog: str, description: str | None, examples: str, common: Collection[str] = ()) -> None:
        self.prog = prog
        self.description = description or ""
        self.examples = examples
        self._flags: dict[str, Flag] = {}
        self._common = common

    def add_options(
        self, options: type[Options], only: Sequence[str] = (), task: str | None = None, **defaults: Any
    ) -> None:
        """Add a flag for every field of an option class, or for the fields named in `only`.

        Args:
            task: the task that uses the options. A flag that another task has added gets a second meaning.
            defaults: defaults of the script where they differ from those of the fields.
        """
        for field in dataclasses.fields(options):
            if only and field.name not in only:
                continue
            meaning = Meaning(field, defaults.get(field.name, field.default), task)
            flag = Flag(options, field)
            self._flags.setdefault(flag.name, flag).meanings.append(meaning)

    def parse(self, argv: Sequence[str] | None) -> dict[str, Any]:
        """Return the values of the flags that were given, by option name.

        Raises:
            UserError: a flag does not exist, lacks its value, or has one of the wrong type.
            SystemExit: `--help` or `--version` was printed.
        """
        pairs = self.pairs(sys.argv[1:] if argv is None else argv)
        self._answer_questions(pairs)
        files = self.files(pairs)
        given: dict[str, Any] = {}
        for name, values in pairs:
            if name in FILES:
                continue
            if name in SWITCHES and values:
                raise UserError(f"takes no value, but {values[0]} was given", name.removeprefix("--"))
            if name in SWITCHES:
                continue
            if name not in self._flags:
                raise UserError(f"unrecognized argument {name}; {self._way_out(name)}")
            if taken := next((value for value in values if value in self.takes), None):
                notice(f"{name}: {taken} is read as its value")
            flag = self._flags[name]
            value, before = flag.read(values), given.get(flag.field.name, ())
            given[flag.field.name] = (*before, *value) if flag.takes == "several" else value
        if "--config" in files:
            given = merged(read_config(files["--config"], self._flags), given)
        return {name: value for name, value in given.items() if value is not False}

    def files(self, pairs: Sequence[tuple[str, list[str]]]) -> dict[str, Path]:
        """Return the paths that `--config` and `--save_config` name.

        Raises:
            UserError: one of them is given twice, or has no path.
        """
        found: dict[str, Path] = {}
        for name, values in pairs:
            if name not in FILES:
                continue
            if not values or not values[0]:
                raise UserError("needs the path of a file after it", name.removeprefix("--"))
            if name in found:
                raise UserError("is given twice: give one file", name.removeprefix("--"))
            found[name] = Path(values[0]).expanduser()
        return found

    def pairs(self, words: Sequence[str]) -> list[tuple[str, list[str]]]:
        """Return the flags among the words, each with its values."""
        return [("--help" if name == "-h" else name, values) for name, values in pair_values(words, self.takes)]

    @property
    def takes(self) -> dict[str, Values]:
        """How many values each flag takes, by the name of the flag."""
        switches: dict[str, Values] = dict.fromkeys(("-h", *SWITCHES), "none")
        files: dict[str, Values] = dict.fromkeys(FILES, "one")
        return switches | files | {name: flag.takes for name, flag in self._flags.items()}

    def _way_out(self, word: str) -> str:
        if not word.startswith("--"):
            return "flags begin with two dashes, and a text of several words needs quotes around it"
        return did_you_mean(word.partition("=")[0], self.takes, "--help-all lists all flags")

    def _answer_questions(self, pairs: list[tuple[str, list[str]]]) -> None:
        """Print the help or the version if a flag asks for it, and exit."""
        asked = [name for name, values in pairs if not values]
        if "--help" in asked or "--help_all" in asked:
            task = next((values[0] for name, values in pairs if name == "--task" and values), None)
            write_out(self.format_help(everything="--help_all" in asked, task=task))
            raise SystemExit(0)
        if "--version" in asked:
            write_out(f"gpt2tg {__version__}\n")
            raise SystemExit(0)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the script, in the order of their first flags; empty if it has none."""
        found = (meaning.task for flag in self._flags.values() for meaning in flag.meanings)
        return tuple(dict.fromkeys(task for task in found if task is not None))

    def flags(self, task: str | None = None, everything: bool = True) -> list[Flag]:
        """Return the flags of the script, or of one of its tasks.

        Args:
            task: a task of the script; None stands for all of them.
            everything: all flags; else those that most people need.
        """
        shown = [flag for flag in self._flags.values() if flag.in_task(task)]
        if everything:
            return shown
        if self._common and task is None:
            return [flag for flag in shown if flag.field.name in self._common]
        return [flag for flag in shown if any(m.field.metadata["is_common"] for m in flag.in_task(task))]

    def format_help(self, everything: bool = False, task: str | None = None) -> str:
        """Return the text of `--help`, or with `everything` that of `--help-all`, for one task or for all."""
        task = task if task in self.tasks else None
        return help_text(
            usage=f"{self.prog} {f'--task {task} ' if task else ''}[flags]",
            description=self.description,
            flags=self.flags(task, everything),
            total=len(self.flags(task)),
            switches={f"{name} FILE": text for name, text in FILES.items()} | SWITCHES,
            task=task,
            tasks=self.tasks,
            examples=self.examples,
        )


def pick(options: type[OptionsT], given: dict[str, Any], **defaults: Any) -> OptionsT:
    """Build an option class from the given flags that belong to it, and the defaults of the script."""
    return options(**only(options, {**defaults, **given}))
