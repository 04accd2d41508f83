"""The run of a script: exit codes, and errors as one line on stderr."""

from __future__ import annotations

import contextlib
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt2tg.cli.config import is_saved, recipe_of, write_config
from gpt2tg.cli.parser import Parser
from gpt2tg.errors import Interrupted, ProcessError, RunError, UserError
from gpt2tg.io.memory import is_out_of_memory
from gpt2tg.io.processes import is_main_process, process_count
from gpt2tg.io.streams import notice, open_closed_streams, silence_broken_streams, speak_utf8, write_out

# Exit codes: bad input, a failure during the run, Ctrl-C.
BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


def run(parser: Parser, body: Callable[[dict[str, Any]], None], argv: Sequence[str] | None) -> int:
    """Parse the command line, run the body, and turn an error into one line on stderr and an exit code.

    Returns:
        0 for success, 2 for what the user can correct in the command or its input, 1 for a failure during the run,
        130 for Ctrl-C, 128 plus its number for another signal.
    """
    words = sys.argv[1:] if argv is None else argv
    pairs = parser.pairs(words)
    debug = ("--debug", []) in pairs
    open_closed_streams()
    speak_utf8()
    try:
        given = parser.parse(words)
        with _saved_config(parser, parser.files(pairs).get("--save_config"), given):
            body(given)
        write_out()
        return 0
    except BrokenPipeError:  # the reader of a pipe, such as head or less, has seen enough
        return 0
    except Interrupted as stop:
        notice(str(stop))
        if stop.is_saved:
            notice(how_to_resume(pairs))
        return stop.exit_code
    except KeyboardInterrupt:
        _ignore_forwarded_ctrl_c()
        notice("interrupted")
        return INTERRUPTED
    except UserError as error:
        return _fail(parser, error.as_flag(), BAD_INPUT, debug)
    except ModuleNotFoundError as error:
        message = f"the package {error.name} is not installed: run make setup, or pip install -r requirements.txt"
        return _fail(parser, message, FAILED, debug)
    except (RunError, OSError) as error:
        return _fail(parser, str(error), FAILED, debug, from_any_process=isinstance(error, ProcessError))
    except Exception as error:
        if is_out_of_memory(error):
            return _fail(parser, "out of memory: lower --batch_size, or use --device cpu", FAILED, debug)
        message = f"unexpected {type(error).__name__}: {error} (--debug shows where)"
        return _fail(parser, message, FAILED, debug)
    finally:
        silence_broken_streams()


@contextlib.contextmanager
def _saved_config(parser: Parser, path: Path | None, given: Mapping[str, Any]) -> Iterator[None]:
    """Save the flags as a recipe, if a path is given, and remove it again if the command refuses them."""
    recipe = "" if path is None else recipe_of(given, parser.prog, path.name)
    if path is None or not is_main_process() or is_saved(path, recipe):
        yield
        return
    write_config(path, recipe)
    try:
        yield
    except UserError:
        path.unlink(missing_ok=True)
        raise


def how_to_resume(pairs: Sequence[tuple[str, list[str]]]) -> str:
    """Return the advice for an interrupted run: its command with `--resume`.

    Args:
        pairs: the flags of the interrupted command, each with its values.
    """
    given = dict(pairs)
    if "--overwrite" in given:
        return "to resume, give the same command with --resume instead of --overwrite"
    if "--resume" not in given:
        return "to resume, add --resume to the same command"
    if given["--resume"]:
        return "to resume, give the same command with --resume alone, without its path"
    return "to resume, give the same command again"


def _ignore_forwarded_ctrl_c() -> None:
    """Ignore that a launcher of several processes forwards the Ctrl-C which the terminal has sent already."""
    if process_count() > 1:
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _fail(parser: Parser, message: str, code: int, debug: bool, from_any_process: bool = False) -> int:
    if debug:
        traceback.print_exc()
    notice(f"{parser.prog}: error: {' '.join(message.split())}", from_any_process)
    return code
