"""From a command line to options, and from an error to one line and an exit code.

Only the standard library is imported here: a script shows its help and refuses bad flags before torch is loaded.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import dataclasses
import difflib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn, TypeVar

from gpt2tg import __version__
from gpt2tg.errors import Interrupted, RunError, UserError, masked
from gpt2tg.io.streams import notice, open_closed_streams, printable, silence_broken_streams, speak_utf8, write_out
from gpt2tg.options import number_from, only, plain_type
from gpt2tg.options.escapes import Nargs, as_utf8, is_utf8_in_this_locale, pair_values, read_escapes

Options = TypeVar("Options")

# Headings of the help text, in the order they appear.
GROUPS = {
    "task": "task",
    "model": "model",
    "data": "data",
    "prompts": "prompts and output",
    "decoding": "decoding",
    "beams": "beams",
    "repetition": "repetition and words",
    "output": "length and end of the texts",
    "inspection": "look inside",
    "training": "training",
    "memory": "memory and speed of training",
    "run": "output directory and log",
    "samples": "samples after training",
    "from scratch": "training from scratch",
    "evaluation": "evaluation",
    "comparison": "comparison",
    "tuning": "tuning",
}

MODEL_TABLE = """\
model names:
  gpt2-tiny      6M parameters, bundled: works offline at once
  distilgpt2    82M   0.35 GB to download
  gpt2         124M   0.55 GB
  gpt2-medium  355M   1.5 GB
  gpt2-large   774M   3.2 GB
  gpt2-xl      1.5B   6.4 GB
"""

# Directories in which libraries read and write, which take names in UTF-8 alone.
READ_BY_LIBRARIES = ("model_name", "model_path", "output_dir", "resume")

# Exit codes: bad input, a run that failed on its way, Ctrl-C.
BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


class Parser(argparse.ArgumentParser):
    """argparse with `--x-y` for `--x_y`, no abbreviations, and errors that fit in one line."""

    def __init__(self, *, description: str, examples: str, **settings: Any) -> None:
        super().__init__(
            usage="%(prog)s [flags]",
            description=description,
            epilog=f"{examples}\n{MODEL_TABLE}",
            formatter_class=_help_formatter,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
            **settings,
        )
        self.add_argument("--version", action="version", version=f"gpt2tg {__version__}")
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")
        self._titled: dict[str, Any] = {}

    def add_options(self, options: type, only: Sequence[str] = (), note: str = "", **defaults: Any) -> None:
        """Add a flag for every field of an options dataclass, or for those named in `only`.

        A flag that is there already keeps its meaning; what it means here is added to its help text, headed by
        `note`. `defaults` replaces defaults in the help text, as the script does when it builds the options.
        """
        for field in dataclasses.fields(options):
            if only and field.name not in only:
                continue
            default = defaults.get(field.name, field.default)
            there = self._option_string_actions.get(flag(field.name))
            if there is None:
                self._add_option(options, field, default)
            elif note and (meaning := _help_text(field, default)) != there.help:
                there.help = f"{there.help}; {note}: {meaning}"

    def _add_option(self, options: type, field: Any, default: Any) -> None:
        rule, kind = field.metadata, plain_type(options, field.name)
        group = self._group(GROUPS[rule["group"]])
        if kind is bool:
            group.add_argument(flag(field.name), action="store_true", help=rule["help"])
            return
        settings: dict[str, Any] = dict(type=partial(_value, field, kind), help=_help_text(field, default))
        if rule["choices"]:
            settings["metavar"] = rule["metavar"] or "|".join(rule["choices"])
            if rule["metavar"]:
                settings["help"] = f"{', '.join(rule['choices'])}: " + settings["help"]
        else:
            settings["metavar"] = rule["metavar"] or {int: "N", float: "X"}.get(kind, "TEXT")
        if kind is tuple:
            settings.update(nargs="+", action="extend")
        if rule["flag_value"] is not None:
            settings.update(nargs="?", const=rule["flag_value"])
        group.add_argument(flag(field.name), dest=field.name, **settings)

    def _group(self, title: str) -> Any:
        if title not in self._titled:
            self._titled[title] = self.add_argument_group(title)
        return self._titled[title]

    def parse(self, argv: Sequence[str] | None) -> dict[str, Any]:
        """The flags that were given, and only those, by option name.

        Raises:
            UserError: a flag that does not exist, lacks its value, or has one of the wrong type.
        """
        given: dict[str, Any] = {}
        for name, values in self.flags(sys.argv[1:] if argv is None else argv):
            action = self._option_string_actions.get(name)
            if action is None:
                raise UserError(f"unrecognized argument {name}{self._nearest(name)}")
            if taken := next((value for value in values if value in self._option_string_actions), None):
                notice(f"{name}: {taken} is read as its value")
            given |= self._read(action, values, given.get(action.dest, ()))
        return given

    def flags(self, words: Sequence[str]) -> list[tuple[str, list[str]]]:
        """The flags among the words, each with its values."""
        nargs: dict[str, Nargs] = {name: action.nargs for name, action in self._option_string_actions.items()}
        return pair_values(words, nargs)

    def _read(self, action: argparse.Action, values: list[str], before: tuple[Any, ...]) -> dict[str, Any]:
        """The option that a flag sets, and what to; several values are added to those from before."""
        if action.nargs == 0:
            if values:
                raise UserError(f"takes no value, and {values[0]} was given", action.dest)
            found = argparse.Namespace()
            action(self, found, [], action.option_strings[-1])  # --help and --version end here
            return vars(found)
        if not values:
            if action.nargs != "?":
                raise UserError("needs a value after it", action.dest.rstrip("_"))
            return {action.dest: action.const}
        read: Callable[[str], Any] = action.type  # type: ignore[assignment]  # of all our options
        if action.nargs == "+":
            return {action.dest: (*before, *map(read, values))}
        return {action.dest: read(values[0])}

    def _nearest(self, word: str) -> str:
        if not word.startswith("--"):
            return "; flags begin with two dashes, and a text of several words needs quotes around it"
        near = difflib.get_close_matches(word.partition("=")[0], self._option_string_actions, n=1)
        return f"; did you mean {near[0]}?" if near else "; --help lists all flags"


def flag(name: str) -> str:
    """The flag of an option; one that is named like a word of Python ends in an underscore there."""
    return f"--{name.rstrip('_')}"


def _value(field: Any, kind: type, word: str) -> Any:
    """The value of an option that a word of the command line gives.

    Raises:
        UserError: bytes that are not UTF-8, a number that is none, or nothing where a name is needed.
    """
    name, is_text = field.name.rstrip("_"), field.metadata["is_text"]
    try:
        text = as_utf8(word)
    except UnicodeError:
        shown, way_out = printable(word)[:80], "write it" if is_text else "rename what it names, or write it"
        raise UserError(f"is not UTF-8: {shown}; {way_out} in UTF-8", name) from None
    if kind in (int, float):
        return number_from(text, kind, name)
    if not is_text:
        if not word:
            raise UserError("is empty: give a value, or leave out the flag", name)
        if name in READ_BY_LIBRARIES and not is_utf8_in_this_locale(word):
            raise UserError(f"{text} cannot be opened in this locale: set PYTHONUTF8=1, or rename it", name)
        return word  # the name of a file as the system has it, which may be no UTF-8 in this locale
    if name == "prompt" and read_escapes(text) != text:
        notice(r"--prompt: \n is read as a line break, \t as a tab; write \\n for a backslash and an n")
    return read_escapes(text)


def _help_formatter(prog: str) -> argparse.HelpFormatter:
    width = min(shutil.get_terminal_size().columns, 110)
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=width)


def _help_text(field: Any, default: Any) -> str:
    """What a flag does, with its default."""
    rule = field.metadata
    if isinstance(default, bool):
        return rule["help"]
    shown = rule["shown_default"] if default is None or default == field.default else None
    shown = shown or ("none" if default is None else _plain_number(default))
    return f"{rule['help']} (default: {shown})".replace("%", "%%")


def _plain_number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def pick(options: type[Options], given: dict[str, Any], **defaults: Any) -> Options:
    """Build an options dataclass from the flags given that belong to it."""
    return options(**only(options, {**defaults, **given}))


def leave(code: int) -> NoReturn:
    """End this process with an exit code, as `sys.exit` does.

    Taking torch apart would need another quarter of a second: once all exit functions were called, the process ends
    where it stands. Not after training, whose libraries may hold files open, nor in a session of Python's own.
    """
    if not ("transformers" in sys.modules or "IPython" in sys.modules or sys.flags.interactive or hasattr(sys, "ps1")):
        atexit.register(_end, code)
    sys.exit(code)


def _end(code: int) -> None:
    """The last to be registered is the first to be called: before it ends the process, it calls the others."""
    atexit.unregister(_end)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # there is none, or what went wrong was said
            stream.flush()
    os._exit(code)


def run(parser: Parser, body: Callable[[dict[str, Any]], None], argv: Sequence[str] | None) -> int:
    """Parse, run the body, and turn what goes wrong into one line on stderr and an exit code.

    Returns:
        0 when all went well, 2 for what the user can mend in the command or its input, 1 for a run that
        failed on its way, 130 for Ctrl-C, 128 and its number for another signal.
    """
    words = sys.argv[1:] if argv is None else argv
    debug = ("--debug", []) in parser.flags(words)
    open_closed_streams()
    speak_utf8()
    try:
        body(parser.parse(words))
        write_out()
        return 0
    except BrokenPipeError:  # the reader of a pipe (head, less) has seen enough
        return 0
    except Interrupted as stop:
        notice(str(stop))
        if stop.is_saved:
            notice(f"go on with: {_resuming(parser, words)}")
        return stop.exit_code
    except KeyboardInterrupt:
        notice("interrupted")
        return INTERRUPTED
    except UserError as error:
        return _fail(parser, error.as_flag(), BAD_INPUT, debug)
    except ModuleNotFoundError as error:
        what = f"the package {error.name} is not installed: run make setup, or pip install -r requirements.txt"
        return _fail(parser, what, FAILED, debug)
    except (RunError, OSError) as error:
        return _fail(parser, str(error), FAILED, debug)
    except Exception as error:
        what = f"unexpected {type(error).__name__}: {error} (--debug shows where)"
        return _fail(parser, what, FAILED, debug)
    finally:
        silence_broken_streams()


def _resuming(parser: Parser, words: Sequence[str]) -> str:
    """The command that goes on with the run that this one began."""
    flags = [(name, *values) for name, values in parser.flags(words) if name not in ("--overwrite", "--resume")]
    kept = [word for flag_with_values in flags for word in flag_with_values]
    program = [*_launcher(), sys.argv[0]] if sys.argv[0].endswith(".py") else [parser.prog.removesuffix(".py")]
    return _quoted([*program, *map(masked, kept), "--resume"])


def _launcher() -> list[str]:
    """What stands before the script: python, or the torchrun or accelerate that started it, with its flags."""
    if "LOCAL_RANK" not in os.environ:
        return ["python"]
    import psutil

    try:
        words = psutil.Process(os.getppid()).cmdline()
        _, name, *flags = words[: words.index(sys.argv[0])]
    except (psutil.Error, ValueError):  # nobody we know
        return ["torchrun", "--nproc_per_node", os.environ.get("LOCAL_WORLD_SIZE", "1")]
    return ["python", name, *flags] if name.startswith("-") else [os.path.basename(name), *flags]


def _quoted(words: list[str]) -> str:
    if os.name == "nt":
        import subprocess

        return subprocess.list2cmdline(words)
    import shlex

    return shlex.join(words)


def _fail(parser: Parser, message: str, code: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    notice(f"{parser.prog}: error: {' '.join(message.split())}")
    return code
