"""Where the commands write: stdout, or the file of `--output`."""

from __future__ import annotations

from pathlib import Path

from gpt2tg.io.outputs import check_file
from gpt2tg.io.streams import notice, write_out
from gpt2tg.options import PromptOptions


def check_output(options: PromptOptions, resumes: bool = False) -> None:
    """Refuse an `--output` that cannot be written, before anything is computed.

    Args:
        resumes: whether records of an earlier run in the file are kept and appended to.

    Raises:
        UserError: as `check_file`.
    """
    if options.output is None:
        return
    appends = resumes and options.format == "jsonl" and not options.overwrite
    check_file(Path(options.output), "output", notice, options.overwrite or appends, appends)


def write_text(text: str) -> None:
    """Write to stdout and flush, piece by piece, so that no piece ends within a character."""
    from gpt2tg.generation.visible_text import in_pieces

    for piece in in_pieces(text):
        write_out(piece)
